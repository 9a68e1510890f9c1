"""What is watched about scores: of pairs, of graded responses and of judged steps.

Shape letters: B preference pairs, R responses, N judged steps, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rlhf.metrics.data import DATA_METRICS

SCORE_METRICS = (
    "scores/chosen",
    "scores/rejected",
    "scores/margin",
    "scores/accuracy",
    "scores/ties",
    "scores/accuracy_longer",
    "scores/accuracy_shorter",
    "scores/accuracy_by_length",
    "scores/squared_error",
    "length/chosen",
    "length/rejected",
    "steps/accuracy",
    "steps/right",
    "steps/wrong",
    *DATA_METRICS,
)
"""Means that a reward model logs; docs/algorithms/reward.md says what each one is."""

LENGTH_BUCKETS = (
    "shorter_by_over_100",
    "shorter_by_21_to_100",
    "within_20",
    "longer_by_21_to_100",
    "longer_by_over_100",
)
"""By how many tokens the chosen response is shorter or longer than the rejected one."""

_BUCKET_BOUNDS = (-100.5, -20.5, 20.5, 100.5)

SumsAndCounts = dict[str, tuple[Tensor, Tensor | float]]


def score_sums(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    sources: Sequence[str] = (),
) -> SumsAndCounts:
    """Sum and count of every metric of pairs of which one response is better. Equal scores are no trial of accuracy.

    Args:
        chosen_scores: (B,) of the preferred responses.
        rejected_scores: (B,) of the others.
        chosen_lengths: (B,) tokens of the preferred responses.
        rejected_lengths: (B,) tokens of the others.
        sources: B names, whose accuracies, ties and margins are kept apart as well; none = not.

    Example:
        >>> tokens = torch.tensor([5, 5])
        >>> sums = score_sums(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), tokens, tokens)
        >>> sums["scores/accuracy"], sums["scores/ties"]
        ((tensor(1), tensor(1)), (tensor(1), 2))
    """
    margins = (chosen_scores - rejected_scores).detach()
    wins, trials = margins > 0, margins != 0
    longer_by = chosen_lengths - rejected_lengths
    means = {
        "scores/chosen": chosen_scores.detach(),
        "scores/rejected": rejected_scores.detach(),
        "scores/margin": margins,
        "scores/ties": ~trials,
        "length/chosen": chosen_lengths,
        "length/rejected": rejected_lengths,
    }
    sums: SumsAndCounts = {name: (column.sum(), len(margins)) for name, column in means.items()}
    for name, counted in {
        "": trials,
        "_longer": trials & (longer_by > 0),
        "_shorter": trials & (longer_by < 0),
    }.items():
        sums[f"scores/accuracy{name}"] = (wins & counted).sum(), counted.sum()
    buckets = torch.bucketize(longer_by.float(), torch.tensor(_BUCKET_BOUNDS, device=margins.device))
    sums |= _by_part("scores/accuracy_by_length", LENGTH_BUCKETS, buckets, wins, trials)
    everything = torch.ones_like(trials)
    sums |= _by_source("scores/accuracy", wins, trials, sources)
    sums |= _by_source("scores/ties", ~trials, everything, sources)
    return sums | _by_source("scores/margin", margins, everything, sources)


def grade_sums(scores: Tensor, grades: Tensor, sources: Sequence[str] = ()) -> SumsAndCounts:
    """Sum and count of the squared distance of scores from known grades.

    Args:
        scores: (R,) of responses.
        grades: (R,) how good each is; NaN where unknown.
        sources: R names, whose errors are kept apart as well; none = not.

    Example:
        >>> grade_sums(torch.tensor([1.0, 2.0]), torch.tensor([3.0, torch.nan]))
        {'scores/squared_error': (tensor(4.), tensor(1))}
    """
    known = ~grades.isnan()
    errors = torch.where(known, scores.detach() - grades, 0.0).square()
    name = "scores/squared_error"
    return {name: (errors.sum(), known.sum())} | _by_source(name, errors, known, sources)


def step_sums(step_scores: Tensor, step_labels: Tensor, sources: Sequence[str] = ()) -> SumsAndCounts:
    """Sum and count of every metric of judged steps: a score above 0 says that the step is right.

    A score of 0 says nothing and is no trial of accuracy; nor is a label of 0.5 or one that is unknown.

    Args:
        step_scores: (N,) of steps.
        step_labels: (N,) from 0 (wrong) to 1 (right); NaN where unknown.
        sources: N names, whose accuracies are kept apart as well; none = not.

    Example:
        >>> step_sums(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))["steps/accuracy"]
        (tensor(1), tensor(2))
    """
    scores = step_scores.detach()
    right, wrong = step_labels > 0.5, step_labels < 0.5
    hits, trials = (scores > 0) == right, (right | wrong) & (scores != 0)
    return {
        "steps/accuracy": ((hits & trials).sum(), trials.sum()),
        "steps/right": (scores[right].sum(), right.sum()),
        "steps/wrong": (scores[wrong].sum(), wrong.sum()),
        **_by_source("steps/accuracy", hits, trials, sources),
    }


def _by_source(name: str, values: Tensor, counted: Tensor, sources: Sequence[str]) -> SumsAndCounts:
    """Sum and count of each source; nothing where none are named."""
    parts = sorted(set(sources))
    part_of = torch.tensor([parts.index(source) for source in sources], device=values.device)
    return _by_part(name, parts, part_of, values, counted) if parts else {}


def _by_part(name: str, parts: Sequence[str], part_of: Tensor, values: Tensor, counted: Tensor) -> SumsAndCounts:
    """Sum and count of each part.

    Args:
        name: of the metric.
        parts: P names.
        part_of: (B,) int64, the part that each value belongs to.
        values: (B,).
        counted: (B,) bool, True = the value counts.
    """
    columns = torch.stack([values * counted, counted.to(values)], dim=1).float()
    sums = columns.new_zeros(len(parts), 2).index_add(0, part_of, columns)
    return {f"{name}/{part}": (total, count) for part, (total, count) in zip(parts, sums, strict=True)}
