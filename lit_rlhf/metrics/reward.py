"""What is watched of a reward model's micro-batches, whatever kind of judgement they hold.

Shape letters: L sequences, K objectives, N judged steps, B pairs of which one response is better.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_rlhf.losses.reward_terms import ranked_pairs
from lit_rlhf.metrics.calibration import Calibration, ReliabilityBin
from lit_rlhf.metrics.data import data_sums
from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.moments import ScoreMoments
from lit_rlhf.metrics.scores import SCORE_METRICS, SumsAndCounts, grade_sums, score_sums, step_sums
from lit_rlhf.types import Forest, GradedResponses, JudgedSteps, PreferencePairs

RewardMicroBatch = PreferencePairs | GradedResponses | JudgedSteps


class Compared(NamedTuple):
    """Pairs of responses of which one is better.

    Args:
        better: (B,) int64, sequence of the better response.
        worse: (B,) int64, of the other one.
        sources: B names of the data sources.
    """

    better: Tensor
    worse: Tensor
    sources: tuple[str, ...]


class Evaluation(nn.Module):
    """All metrics of an evaluation, over all ranks and any split.

    Args:
        parts: names of the parts of the loss.
    """

    def __init__(self, parts: Iterable[str]) -> None:
        super().__init__()
        self.means = Means((*parts, *SCORE_METRICS))
        self.moments = ScoreMoments()
        self.calibration = Calibration()

    def count(self, notes: dict[str, int], num_examples: int) -> None:
        """Add what became of the rows of a batch."""
        self.means.update(data_sums(notes, num_examples))

    def add(self, micro_batch: RewardMicroBatch, scores: Tensor, sums: SumsAndCounts) -> None:
        """Add a micro-batch.

        Args:
            micro_batch: what was judged.
            scores: (L,) of its sequences; of judged steps (N,).
            sums: what :func:`watched` says of it, and the parts of the loss.
        """
        self.means.update(sums)
        if isinstance(micro_batch, JudgedSteps):
            return
        pairs = compared(micro_batch)
        self.moments.update(scores, response_lengths(micro_batch.forest), scores[pairs.better], scores[pairs.worse])
        self.calibration.update(scores[pairs.better] - scores[pairs.worse])

    def compute(self) -> dict[str, Tensor]:
        """All metrics by name, as scalars."""
        found = {**self.means.compute(), **self.moments.compute(), **self.calibration.compute()}
        return {name: value.float() for name, value in found.items()}

    def bins(self) -> list[ReliabilityBin]:
        """The inhabited bins of the reliability plot, over all ranks."""
        return self.calibration.bins()

    def num_pairs(self) -> dict[str, Tensor]:
        """Pairs by source, where there are several sources."""
        counts = self.means.counts()
        return {
            name.removeprefix("scores/margin/"): counts[name] for name in counts if name.startswith("scores/margin/")
        }

    def reset(self) -> None:
        """Begin anew."""
        for metric in (self.means, self.moments, self.calibration):
            metric.reset()


def watched(micro_batch: RewardMicroBatch, scores: Tensor, objective_scores: Tensor | None = None) -> SumsAndCounts:
    """Sums and counts of all that is watched about a micro-batch.

    Args:
        micro_batch: what was judged.
        scores: (L,) of its sequences; of judged steps (N,).
        objective_scores: (L, K), given where scores learn to equal grades.
    """
    if isinstance(micro_batch, JudgedSteps):
        sources = [micro_batch.sources[sequence] for sequence in micro_batch.forest.sequences.tolist()]
        return step_sums(scores, micro_batch.labels, sources)
    pairs, lengths = compared(micro_batch), response_lengths(micro_batch.forest)
    better, worse = pairs.better, pairs.worse
    sums = score_sums(scores[better], scores[worse], lengths[better], lengths[worse], pairs.sources)
    if isinstance(micro_batch, GradedResponses) and objective_scores is not None:
        sums |= grade_sums(objective_scores.flatten(), micro_batch.grades.flatten())
    return sums


def compared(micro_batch: PreferencePairs | GradedResponses) -> Compared:
    """The pairs of a micro-batch of which one response is better; ties are none."""
    if isinstance(micro_batch, PreferencePairs):
        return Compared(micro_batch.chosen, micro_batch.rejected, micro_batch.sources)
    better, worse = ranked_pairs(micro_batch.groups, micro_batch.ranks)
    is_better = micro_batch.ranks[better] < micro_batch.ranks[worse]
    better, worse = better[is_better], worse[is_better]
    return Compared(better, worse, tuple(micro_batch.sources[sequence] for sequence in better.tolist()))


def response_lengths(forest: Forest) -> Tensor:
    """(L,) tokens of each response."""
    return torch.tensor([forest.lengths[leaf] for leaf in forest.leaves], device=forest.tokens.device)


def score_rows(micro_batch: RewardMicroBatch, scores: Tensor) -> list[dict[str, Any]]:
    """One dictionary per pair or response: its address, its source, its scores, and tokens of responses.

    Args:
        micro_batch: what was scored.
        scores: (L,) of its sequences; of judged steps (N,).
    """
    names = [{"row": row, "source": source} for row, source in zip(micro_batch.rows, micro_batch.sources, strict=True)]
    if isinstance(micro_batch, JudgedSteps):
        steps: list[list[float]] = [[] for _ in names]
        for sequence, score in zip(micro_batch.forest.sequences.tolist(), scores.tolist(), strict=True):
            steps[sequence].append(score)
        return [{**name, "step_scores": row} for name, row in zip(names, steps, strict=True)]
    lengths = response_lengths(micro_batch.forest)
    if isinstance(micro_batch, GradedResponses):
        columns = {"score": scores, "length": lengths}
    else:
        chosen, rejected = micro_batch.chosen, micro_batch.rejected
        columns = {
            "chosen_score": scores[chosen],
            "rejected_score": scores[rejected],
            "margin": scores[chosen] - scores[rejected],
            "chosen_length": lengths[chosen],
            "rejected_length": lengths[rejected],
        }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{**name, **dict(zip(columns, numbers, strict=True))} for name, numbers in zip(names, values, strict=True)]
