"""Rollouts to the samples that rewards read."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lit_rlhf.rewards.reward import Sample
from lit_rlhf.types import Prompt, Rollouts

_CONTEXT = 8  # tokens of the prompt that a response is decoded behind: enough for a letter that is cut in two


def samples_of(rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """Rollouts as text, with what their rows say.

    The text of a response has no special tokens; a stop string that ended it stays, as it does in what ``generate`` of
    transformers returns: ``</answer>`` is part of an answer. A response to plain text is what follows that text, a
    space at its beginning included.

    Args:
        rollouts: L responses.
        tokenizer: of the policy.

    Returns:
        L samples, in the order of the rollouts.
    """
    lengths, finished = rollouts.lengths.tolist(), rollouts.finished.tolist()
    rows = [tokens[:length] for tokens, length in zip(rollouts.tokens.tolist(), lengths, strict=True)]
    return [
        Sample(
            prompt=prompt.text,
            response=_text(tokenizer, prompt, tokens),
            messages=prompt.messages,
            prompt_tokens=prompt.tokens,
            response_tokens=tokens,
            columns=prompt.columns,
            row=prompt.row,
            finished=ended,
            pictures=prompt.pictures,
        )
        for prompt, tokens, ended in zip(rollouts.prompts, rows, finished, strict=True)
    ]


def _text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, tokens: list[int]) -> str:
    """The text of a response; some tokenizers leave out a space at the beginning of what they decode."""

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if prompt.messages:
        return decode(tokens)
    context = list(prompt.tokens[-_CONTEXT:])
    before, whole = decode(context), decode(context + tokens)
    return whole[len(before) :] if whole.startswith(before) else decode(tokens)
