"""Reward terms: from scores to the examples that reward losses read, and one part of a weighted sum of such losses.

Shape letters: L sequences, K objectives, B preference pairs, R responses (once per objective), N judged steps, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.losses.reward import bradley_terry_loss
from lit_rlhf.losses.signatures import Signature

UNITS = {
    "pairs": ("chosen_scores", "rejected_scores", "margins", "ties"),
    "responses": ("scores", "grades", "ranks"),
    "lists": ("scores", "grades", "ranks", "lists"),
    "steps": ("step_scores", "step_labels"),
}
"""What a loss may ask for by the unit that it gives one number for; ``lists`` among its inputs tells lists."""

GIVEN = {"pairs": ("pairs",), "graded": ("pairs", "responses", "lists"), "steps": ("steps",)}
"""Units of each ``data.kind``."""


class ScoredExamples(NamedTuple):
    """What a reward loss may ask for, by these names; empty where a kind of batch has none of it.

    Args:
        chosen_scores: (B,) of the preferred response of each pair; of either in a tie.
        rejected_scores: (B,) of the other one.
        margins: (B,) by how much the chosen response is better, in the unit of the data; 0 where unknown.
        ties: (B,) bool, True = neither is better.
        scores: (R,) of responses.
        grades: (R,) how good each response is, higher better; NaN where unknown.
        ranks: (R,) place of each response in its list, 0 the best; equal ranks are a tie.
        lists: (R,) int64, the list that each response belongs to: its row, by one objective.
        step_scores: (N,) of judged steps.
        step_labels: (N,) from 0 (wrong) to 1 (right); NaN where unknown.
    """

    chosen_scores: Tensor
    rejected_scores: Tensor
    margins: Tensor
    ties: Tensor
    scores: Tensor
    grades: Tensor
    ranks: Tensor
    lists: Tensor
    step_scores: Tensor
    step_labels: Tensor


def pair_examples(scores: Tensor, chosen: Tensor, rejected: Tensor, margins: Tensor) -> ScoredExamples:
    """Examples of a batch of preference pairs.

    Args:
        scores: (L,) of sequences.
        chosen: (B,) int64, the chosen sequence of each pair.
        rejected: (B,) int64, the rejected one.
        margins: (B,) by how much the chosen response is better.

    Example:
        >>> pair_examples(torch.tensor([1.0, 2.0]), torch.tensor([1]), torch.tensor([0]), torch.zeros(1)).chosen_scores
        tensor([2.])
    """
    ties = torch.zeros_like(margins, dtype=torch.bool)
    return _examples(scores, chosen_scores=scores[chosen], rejected_scores=scores[rejected], margins=margins, ties=ties)


def graded_examples(scores: Tensor, groups: Tensor, ranks: Tensor, grades: Tensor) -> ScoredExamples:
    """Examples of a batch of graded responses.

    A list is a row. With several objectives it is a row by one of them: each objective ranks the responses by its own
    grades, and leaves out those whose grade it does not know. Pairs are all those of a list, the better response first;
    their margins are 0, for a difference of grades is in no unit of scores.

    Args:
        scores: (L, K) of sequences, by objective.
        groups: (L,) int64, number of the row of each sequence.
        ranks: (L,) int64, place of each response in its row, 0 the best; asked where there is one objective.
        grades: (L, K) by each objective, higher better; NaN where unknown.

    Raises:
        ValueError: if scores and grades differ in shape.

    Example:
        >>> scores, grades = torch.tensor([[0.0], [1.0], [2.0]]), torch.full((3, 1), torch.nan)
        >>> examples = graded_examples(scores, torch.tensor([0, 0, 0]), torch.tensor([1, 0, 1]), grades)
        >>> examples.chosen_scores.tolist(), examples.rejected_scores.tolist(), examples.ties.tolist()
        ([0.0, 1.0, 1.0], [2.0, 0.0, 2.0], [True, False, False])
    """
    if scores.shape != grades.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and grades {tuple(grades.shape)} must both be (L, K)")
    num_objectives = scores.shape[1]
    lists = groups[:, None] * num_objectives + torch.arange(num_objectives, device=groups.device)
    if num_objectives == 1:
        is_listed, places = torch.ones_like(lists, dtype=torch.bool), ranks[:, None]
    else:
        is_listed, places = ~grades.isnan(), _places(groups, grades)
    scores, grades, ranks, lists = (column[is_listed] for column in (scores, grades, places, lists))
    better, worse = ranked_pairs(lists, ranks)
    return _examples(
        scores,
        chosen_scores=scores[better],
        rejected_scores=scores[worse],
        margins=torch.zeros_like(scores[better]),
        ties=ranks[better] == ranks[worse],
        scores=scores,
        grades=grades,
        ranks=ranks,
        lists=lists,
    )


def step_examples(step_scores: Tensor, step_labels: Tensor) -> ScoredExamples:
    """Examples of a batch of judged steps.

    Args:
        step_scores: (N,) of judged steps.
        step_labels: (N,) from 0 (wrong) to 1 (right); NaN where unknown.

    Example:
        >>> step_examples(torch.tensor([2.0]), torch.tensor([1.0])).step_scores
        tensor([2.])
    """
    return _examples(step_scores, step_scores=step_scores, step_labels=step_labels)


def ranked_pairs(lists: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of responses of one list, as indices (B,) of the better and of the worse ones, both int64.

    Args:
        lists: (R,) int64, the list that each response belongs to.
        ranks: (R,) place of each response in its list, 0 the best; in a tie the one that comes first is called better.

    Example:
        >>> better, worse = ranked_pairs(torch.tensor([0, 0, 1]), torch.tensor([1, 0, 0]))
        >>> better.tolist(), worse.tolist()
        ([1], [0])
    """
    places = torch.arange(len(lists), device=lists.device)
    better = (ranks[:, None] < ranks) | ((ranks[:, None] == ranks) & (places[:, None] < places))
    first, second = (better & (lists[:, None] == lists)).nonzero().unbind(1)
    return first, second


@dataclass
class RewardTerm:
    """One part of a weighted sum of reward losses.

    Args:
        function: the loss, by its import path, such as ``lit_rlhf.losses.bradley_terry_loss``; or one of your own that
            takes its tensors by the names that :mod:`lit_rlhf.losses` lists.
        weight: factor of this part.
        options: settings of the function, by name, such as ``{label_smoothing: 0.1}``.
    """

    function: Callable[..., Tensor] = bradley_terry_loss
    weight: float = 1.0
    options: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.signature = Signature.read(self.function, self.options, ScoredExamples._fields, "reward")
        units = [unit for unit, names in UNITS.items() if set(self.signature.inputs) <= set(names)]
        if not units:
            raise ValueError(
                f"losses: {self.name} asks for {', '.join(self.signature.inputs)}; a reward loss may ask for those of "
                + " or of ".join(f"{unit} ({', '.join(names)})" for unit, names in UNITS.items())
            )
        self.unit = units[0]

    @property
    def name(self) -> str:
        """The function's name without ``_loss``: what the part is called in logs."""
        return self.signature.name

    def count(self, examples: ScoredExamples) -> int:
        """Units (U) that the loss gives a number for; scores may be anything."""
        read = self._read(examples)
        if self.unit == "lists":
            better, worse = ranked_pairs(read.lists, read.ranks)
            return len(read.lists[better[read.ranks[better] != read.ranks[worse]]].unique())
        return len(read._asdict()[UNITS[self.unit][0]])

    def __call__(self, examples: ScoredExamples) -> Tensor:
        """The loss (U,) of each unit, without the weight.

        Args:
            examples: what the function may ask for.

        Raises:
            ValueError: if the function does not return one number per unit.
        """
        read, num_units = self._read(examples), self.count(examples)
        losses = self.function(*(read._asdict()[name] for name in self.signature.inputs), **self.options)
        if losses.shape != (num_units,):
            raise ValueError(
                f"losses: {self.name} returned {tuple(losses.shape)}; of {num_units} {self.unit} it must return one "
                "number each, not reduced"
            )
        return losses

    def _read(self, examples: ScoredExamples) -> ScoredExamples:
        """What this loss sees: untied pairs unless it asks for ties, and no unknown grade or label that it asks for."""
        asked = set(self.signature.inputs)
        if self.unit == "pairs":
            kept = torch.ones_like(examples.ties) if "ties" in asked else ~examples.ties
        elif self.unit == "steps":
            kept = ~examples.step_labels.isnan()
        else:
            kept = ~examples.grades.isnan() if "grades" in asked else torch.ones_like(examples.grades, dtype=torch.bool)
        return examples._replace(**{name: examples._asdict()[name][kept] for name in UNITS[self.unit]})


def refuse_missing(terms: Sequence[RewardTerm], kind: str) -> None:
    """Refuse losses that a kind of data has nothing for.

    Args:
        terms: the losses.
        kind: of the batches, as ``data.kind`` names it.

    Raises:
        ValueError: naming the loss, what it needs and the kinds that have it.

    Example:
        >>> refuse_missing([RewardTerm(lambda step_scores: step_scores)], "pairs")
        Traceback (most recent call last):
        ...
        ValueError: losses: <lambda> needs steps, which data.kind: pairs does not give; take data.kind: steps
    """
    for term in terms:
        if term.unit not in GIVEN[kind]:
            others = " or ".join(other for other, units in GIVEN.items() if term.unit in units)
            raise ValueError(
                f"losses: {term.name} needs {term.unit}, which data.kind: {kind} does not give; "
                f"take data.kind: {others}"
            )


def _examples(like: Tensor, **columns: Tensor) -> ScoredExamples:
    return ScoredExamples(**{name: columns.get(name, like.new_empty(0)) for name in ScoredExamples._fields})


def _places(groups: Tensor, grades: Tensor) -> Tensor:
    """(L, K) how many responses of the same row have a higher grade; unknown grades are higher than none."""
    higher = grades[None, :] > grades[:, None]  # (L, L, K): the second is beaten by the first
    return (higher & (groups[:, None] == groups)[..., None]).sum(1)
