"""A reward model as a reward: on the policy's own backbone, or beside it.

It reads the tokens that the policy wrote, so both must speak the same ones. A reward model with another tokenizer is
served by ``lit-rlhf score RUN --serve`` and asked as text by :class:`lit_rlhf.rewards.http.HttpReward`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from lit_rlhf.models.heads.reward_model import RewardModel
from lit_rlhf.models.loading import evaluating
from lit_rlhf.rewards.reward import Sample
from lit_rlhf.types import Forest, Segment


class ModelReward:
    """Scores responses by a reward model, prompts that several responses share once for all of them.

    Args:
        model: with a base of its own, or on the policy's backbone.
        tokenizer: of the reward model.
        policy_tokenizer: of the policy.
        stop_tokens: ids that end a response of the policy.
        normalise: give scores in standard deviations from the mean of the reward model's validation data.
        token_budget: tokens of one forward pass; a longer sample gets one to itself.

    Raises:
        ValueError: if the tokenizers differ, or scores cannot be normalised.
    """

    def __init__(
        self,
        model: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        stop_tokens: Collection[int],
        normalise: bool = True,
        token_budget: int = 8192,
    ) -> None:
        refuse_other_tokenizer(tokenizer, policy_tokenizer)
        self.model = model
        self.closing = closing_tokens(tokenizer, stop_tokens)
        self.stop_tokens = frozenset(stop_tokens)
        self.normalise = normalise
        self.token_budget = token_budget
        if normalise:
            model.score.normalise(torch.zeros(1, device=model.score.weight.device))  # refuses before the first sample

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses; the mode and the role of the backbone are left as they are.

        Args:
            samples: with their tokens, none empty.

        Returns:
            One finite number per sample, in their order.

        Raises:
            ValueError: if a sample has no tokens, or its score is not finite; with its row.
        """
        trees = [list(group) for _, group in groupby(samples, key=lambda sample: tuple(sample.prompt_tokens))]
        scores: list[float] = []
        with evaluating(self.model):
            for batch in self._batches([(tree, self._segments(tree)) for tree in trees]):
                forest = Forest.pack([segments for _, segments in batch]).to(self.model.score.weight.device)
                scores += self.model.scores(forest, normalise=self.normalise).tolist()
        for sample, score in zip(samples, scores, strict=True):
            if not torch.isfinite(torch.tensor(score)):
                raise ValueError(f"{sample.row or repr(sample.prompt)}: the reward model gives the score {score}")
        return scores

    def _segments(self, tree: Sequence[Sample]) -> list[Segment]:
        """A prompt and the responses to it, each as it would be rendered in a conversation."""
        prompt = list(tree[0].prompt_tokens)
        segments = [Segment(prompt, [False] * len(prompt))]
        for sample in tree:
            tokens = list(sample.response_tokens)
            if not prompt or not tokens:
                name = sample.row or repr(sample.prompt)
                raise ValueError(f"{name}: prompt and response need a token each to be scored")
            if sample.messages and tokens[-1] in self.stop_tokens:
                tokens += self.closing
            segments.append(Segment(tokens, [False] * len(tokens), parent=0))
        return segments

    def _batches(
        self, trees: list[tuple[list[Sample], list[Segment]]]
    ) -> list[list[tuple[list[Sample], list[Segment]]]]:
        """Trees in their order, as many at a time as the token budget holds."""
        batches: list[list[tuple[list[Sample], list[Segment]]]] = []
        room = 0
        for tree in trees:
            size = sum(len(segment.tokens) for segment in tree[1])
            if size > room or not batches:
                batches.append([])
                room = self.token_budget
            batches[-1].append(tree)
            room -= size
        return batches


def refuse_other_tokenizer(tokenizer: PreTrainedTokenizerBase, policy_tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a reward model whose tokens mean something else than the policy's.

    Raises:
        ValueError: naming the first token that differs, and what to do instead.
    """
    ours, theirs = tokenizer.get_vocab(), policy_tokenizer.get_vocab()
    odd = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if odd:
        raise ValueError(
            f"the reward model's tokenizer differs from the policy's: {odd[0]!r} is {ours.get(odd[0], 'no token')} in "
            f"one and {theirs.get(odd[0], 'no token')} in the other ({len(odd)} differ); serve it by "
            "`lit-rlhf score RUN --serve` and ask it as text by lit_rlhf.rewards.http.HttpReward"
        )


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
