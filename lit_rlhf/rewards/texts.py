"""Samples as the tokens that a reward model reads: those of the policy, or the text by a tokenizer of its own."""

from __future__ import annotations

import re
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_rlhf.rewards.reward import Sample

Encoding = dict[str, list[int]]
"""What a tokenizer gives for one text: ``input_ids``, and ``token_type_ids`` where a model reads pairs of texts."""


class SampleReader:
    """Turns samples into the tokens that a reward model reads.

    Where its vocabulary is the policy's, and its chat template too, these are the tokens that the policy wrote, with
    what the template writes behind the end of a response. Otherwise the text is tokenised anew:

    1. a conversation as the reward model's chat template renders it;
    2. by a tokenizer that joins two texts (BERT and its kin): the prompt and the response, a conversation without a
       chat template as the texts of its messages, one per line;
    3. plain text as it is, with an end-of-sequence token behind a response that ended by itself.

    Special tokens that a text spells out are broken up: a policy must not write the end of its own turn.

    Args:
        tokenizer: of the reward model.
        policy_tokenizer: of the policy.
        stop_tokens: ids that end a response of the policy.
        max_length: most tokens of a text; of longer ones the beginning is cut.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        stop_tokens: Collection[int],
        max_length: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.stop_tokens = frozenset(stop_tokens)
        self.closing = closing_tokens(tokenizer, stop_tokens)
        self.has_own_vocabulary = differing_token(tokenizer, policy_tokenizer) is not None
        self.has_own_template = tokenizer.chat_template not in (None, policy_tokenizer.chat_template)
        self._joins_texts = tokenizer.cls_token is not None and tokenizer.sep_token is not None
        added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        special = sorted({*added, *map(str, tokenizer.all_special_tokens)}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")

    def __call__(self, sample: Sample) -> Encoding:
        """The tokens of one sample.

        Raises:
            ValueError: if prompt or response have none, or a conversation cannot be rendered; with the row.
        """
        if self.has_own_vocabulary or (self.has_own_template and sample.messages):
            return self._from_text(sample)
        if not sample.prompt_tokens or not sample.response_tokens:
            raise ValueError(f"{sample.address}: prompt and response need a token each to be scored")
        ends = sample.messages and sample.response_tokens[-1] in self.stop_tokens
        tokens = [*sample.prompt_tokens, *sample.response_tokens, *(self.closing if ends else [])]
        return {"input_ids": tokens if self.max_length is None else tokens[-self.max_length :]}

    def _from_text(self, sample: Sample) -> Encoding:
        messages = [self._unmarked(message) for message in sample.messages]
        response = self._unmarked(sample.response)
        if messages and self.tokenizer.chat_template is not None:
            return self._encode(self._rendered(sample, messages, response), add_special_tokens=False)
        if messages and not self._joins_texts:
            raise ValueError(
                f"{sample.address}: the prompt is a conversation, and the reward model's tokenizer has no chat "
                "template; set chat_template"
            )
        prompt = "\n".join(map(_content, messages)) if messages else self._unmarked(sample.prompt)
        if self._joins_texts:
            return self._encode(prompt, response)
        encoding = self._encode(prompt + response)
        end = self.tokenizer.eos_token_id
        if sample.finished and end is not None and encoding["input_ids"][-1:] != [end]:
            encoding = {
                name: [*values, end if name == "input_ids" else values[-1]] for name, values in encoding.items()
            }
        return encoding

    def _rendered(self, sample: Sample, messages: list[dict[str, Any]], response: str) -> str:
        """A conversation with its response; of one that was cut the turn stays open."""
        whole = [*messages, {"role": "assistant", "content": response}]
        is_open = not sample.finished and bool(response.strip())
        try:
            return str(self.tokenizer.apply_chat_template(whole, tokenize=False, continue_final_message=is_open))
        except Exception as error:  # a template is a program, and raises what it likes
            raise ValueError(f"{sample.address}: the reward model's chat template refuses it: {error}") from error

    def _encode(self, *texts: str, add_special_tokens: bool = True) -> Encoding:
        encoded = self.tokenizer(
            *texts,
            add_special_tokens=add_special_tokens,
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_attention_mask=False,
            verbose=False,
        )
        return {name: list(values) for name, values in encoded.items()}

    def _unmarked(self, value: Any) -> Any:
        """Texts in which no special token stands; also those inside messages, their roles aside."""
        if isinstance(value, str):
            return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", value)
        if isinstance(value, list):
            return [self._unmarked(part) for part in value]
        if isinstance(value, dict):
            return {key: part if key in ("role", "type") else self._unmarked(part) for key, part in value.items()}
        return value


def with_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that cuts texts at their beginning, with another chat template unless that is None.

    Args:
        tokenizer: any Hugging Face tokenizer.
        chat_template: a Jinja template, or the path of a file holding one.

    Raises:
        ValueError: if ``chat_template`` is neither.
    """
    tokenizer = deepcopy(tokenizer)
    tokenizer.truncation_side = "left"
    if chat_template is not None and "{" not in chat_template:
        if not Path(chat_template).is_file():
            raise ValueError(f"chat_template is {chat_template!r}, which is neither a file nor a Jinja template")
        chat_template = Path(chat_template).read_text(encoding="utf-8")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def differing_token(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """What two vocabularies differ in, in words; None where they are the same."""
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    odd = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if not odd:
        return None
    first = f"{odd[0]!r} is {ours.get(odd[0], 'no token')} in one and {theirs.get(odd[0], 'no token')} in the other"
    return f"{first} ({len(odd)} differ)"


def closing_tokens(tokenizer: PreTrainedTokenizerBase, stop_tokens: Collection[int]) -> list[int]:
    """Tokens that the chat template writes behind the one that ends a response, such as a line break.

    A reward model was trained on conversations that have them, so a sampled response needs them too.

    Args:
        tokenizer: with or without a chat template.
        stop_tokens: ids that end a response.

    Returns:
        Their ids; none without a chat template, or where the response ends with a stop token.
    """
    if tokenizer.chat_template is None:
        return []
    asked = [{"role": "user", "content": "?"}]
    answered = str(tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": "!"}], tokenize=False))
    ids = tokenizer(answered.rpartition("!")[2], add_special_tokens=False)["input_ids"]
    first = next((number for number, token in enumerate(ids) if token in set(stop_tokens)), len(ids))
    return list(ids[first + 1 :])


def _content(message: dict[str, Any]) -> str:
    """The text of a message, whose content may be a list of typed parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)
