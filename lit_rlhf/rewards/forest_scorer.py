"""A reward model of this package as a scorer: texts to forests, what several share computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from torch import nn

from lit_rlhf.models.heads.reward_model import RewardModel
from lit_rlhf.models.micro_batches import in_step
from lit_rlhf.types import Forest, Picture, Segment


class ScoredText(NamedTuple):
    """A text to be scored.

    Args:
        group: name of its group: texts of one group begin alike, and have the same pictures.
        tokens: ids.
        pictures: of its image tokens, which all lie in what the group shares.
    """

    group: str
    tokens: list[int]
    pictures: tuple[Picture, ...] = ()


class ForestScorer:
    """Scores texts by a reward model.

    Args:
        model: with a base of its own, or on the policy's backbone.
        normalise: give scores in standard deviations from the mean of its validation data.
    """

    def __init__(self, model: RewardModel, normalise: bool) -> None:
        self.module: nn.Module = model
        self.model = model
        self.normalise = normalise

    def __call__(self, rows: Sequence[ScoredText], token_budget: int) -> list[float]:
        """Score texts.

        Args:
            rows: at least one token each; the ends are scored.
            token_budget: tokens of one forward pass, those that a group shares counted once; a longer text gets one to
                itself.

        Returns:
            One number per text, in their order.
        """
        batches = list(_batches(rows, token_budget))
        return [score for batch in in_step(self.model, batches, self.model.scores) for score in self._scores(batch)]

    def _scores(self, rows: Sequence[ScoredText]) -> list[float]:
        forest = Forest.pack(tree for _, group in groupby(rows, key=lambda row: row.group) for tree in _trees(group))
        scores = self.model.scores(forest.to(self.model.score.weight.device), normalise=self.normalise)
        return [float(score) for score in scores.tolist()]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that two rows begin with.

    Example:
        >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
        2
    """
    differing = (at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(differing, min(len(first), len(second)))


def _batches(rows: Sequence[ScoredText], token_budget: int) -> Iterator[list[ScoredText]]:
    """Rows in their order, as many at a time as the budget holds."""
    batch: list[ScoredText] = []
    room = token_budget
    for row in rows:
        shared = common_prefix(batch[-1].tokens, row.tokens) if batch and batch[-1].group == row.group else 0
        if batch and len(row.tokens) - shared > room:
            yield batch
            batch, room, shared = [], token_budget, 0
        batch.append(row)
        room -= len(row.tokens) - shared
    if batch:
        yield batch


def _trees(group: Iterator[ScoredText]) -> Iterator[list[Segment]]:
    """One tree of texts that begin alike, or a tree for each where they do not."""
    texts = list(group)
    rows, pictures = [text.tokens for text in texts], texts[0].pictures
    first, last = min(rows), max(rows)  # in the order of lists: what these two share, all share
    shared = min(common_prefix(first, last), min(map(len, rows)) - 1)
    if len(rows) == 1 or shared < 1:
        yield from ([_segment(tokens, pictures=pictures)] for tokens in rows)
    else:
        yield [_segment(rows[0][:shared], pictures=pictures), *(_segment(tokens[shared:], parent=0) for tokens in rows)]


def _segment(tokens: list[int], parent: int = -1, pictures: tuple[Picture, ...] = ()) -> Segment:
    """No token is marked, as a score is read at the ends."""
    return Segment(tokens, [False] * len(tokens), parent, pictures)
