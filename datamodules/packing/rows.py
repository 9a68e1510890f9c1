"""Rows in tokens, as they are packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lit_rlhf.types import Picture, Segment


class TokenResponse(NamedTuple):
    """One response in tokens.

    Args:
        tokens: token ids, at least one.
        scored: one bool per token; True = its log-probability counts, or a step that is judged ends there.
    """

    tokens: Sequence[int]
    scored: Sequence[bool]


class TokenTree(NamedTuple):
    """A prompt with its responses in tokens, and what was said of them.

    Args:
        prompt: token ids of the prompt, at least one: the first token of a response needs one before it.
        responses: what follows the prompt.
        preferences: pairs of responses as (index of the better, index of the other, by how much it is better).
        labels: one per response where they were judged alone; True = thumb up.
        row: address of the row, such as ``train.jsonl:17``.
        source: name of the data source.
        ranks: one per response where they are graded, 0 the best.
        grades: K numbers per response where they are graded, one by each objective, NaN where unknown.
        step_labels: one per scored token where these end judged steps, from 0 (wrong) to 1 (right).
        pictures: those that the image tokens of the prompt stand for.
    """

    prompt: Sequence[int]
    responses: Sequence[TokenResponse]
    preferences: Sequence[tuple[int, int, float]] = ()
    labels: Sequence[bool] = ()
    row: str = ""
    source: str = ""
    ranks: Sequence[int] = ()
    grades: Sequence[Sequence[float]] = ()
    step_labels: Sequence[float] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in the forest, the prompt counted once."""
        return len(self.prompt) + sum(len(response.tokens) for response in self.responses)

    @property
    def segments(self) -> list[Segment]:
        """The tree as a forest packs it.

        Raises:
            ValueError: if the prompt or a response is empty.
        """
        if not self.prompt or not all(response.tokens for response in self.responses):
            raise ValueError(f"row {self.row!r} has an empty prompt or response: {self}")
        responses = [Segment(tokens, scored, parent=0) for tokens, scored in self.responses]
        return [Segment(self.prompt, [False] * len(self.prompt), pictures=self.pictures), *responses]


class TokenSequence(NamedTuple):
    """One text in tokens.

    Args:
        tokens: token ids, at least two.
        scored: one bool per token; True = its log-probability counts. Never the first: nothing precedes it.
        row: address of the row, such as ``train.jsonl:17``.
        source: name of the data source.
        pictures: those that the image tokens stand for.
    """

    tokens: Sequence[int]
    scored: Sequence[bool]
    row: str = ""
    source: str = ""
    pictures: tuple[Picture, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in the forest."""
        return len(self.tokens)


class TokenPair(NamedTuple):
    """One preference in tokens.

    Args:
        prompt: token ids of the prompt, at least one: the first token of a response needs one before it.
        chosen: token ids of the preferred response, all scored.
        rejected: token ids of the other response, all scored.
        margin: by how much chosen is better, in the unit of the data; 0 where unknown.
        row: address of the row, such as ``train.jsonl:17``.
        source: name of the data source.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    margin: float = 0.0
    row: str = ""
    source: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens in the forest, the prompt counted once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)
