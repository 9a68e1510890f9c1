"""Calibration: whether pairs that a reward model is 80 % sure of are ordered rightly in 80 % of cases."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.metrics.sums import Sums
from lit_rlhf.ranks import sum_over_ranks

CALIBRATION_METRICS = ("scores/ece", "scores/brier")
"""What :class:`Calibration` reports; docs/algorithms/reward.md says what each one is."""


class ReliabilityBin(NamedTuple):
    """Pairs whose confidence lies between two bounds.

    Args:
        low: least confidence of the bin.
        high: greatest confidence of the bin.
        confidence: their mean confidence.
        accuracy: share of them that are ordered rightly; a tie counts half.
        num_pairs: in the bin.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    num_pairs: int


class Calibration(Sums):
    """Calibration of the probability that the chosen response is better, p = sigmoid(margin).

    The confidence in a pair is max(p, 1 - p), from 0.5 to 1, and falls into bins of equal width. The expected
    calibration error (ECE) is the distance of confidence and accuracy, averaged over pairs by bin; the Brier score is
    the mean of (1 - p)^2, 0.25 for a model that knows nothing.

    Args:
        num_bins: between 0.5 and 1.

    Example:
        >>> calibration = Calibration()
        >>> calibration.update(torch.tensor([0.0, 2.0, 2.0, -2.0]))
        >>> [f"{float(value):.4f}" for value in calibration.compute().values()]
        ['0.1606', '0.2636']
        >>> [(f"{row.confidence:.2f}", f"{row.accuracy:.2f}", row.num_pairs) for row in calibration.bins()]
        [('0.50', '0.50', 1), ('0.88', '0.67', 3)]
    """

    def __init__(self, num_bins: int = 10) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.table: Tensor
        self.squares: Tensor
        self.add_sum("table", num_bins, 3)  # of 1, confidence, right
        self.add_sum("squares")

    def update(self, margins: Tensor) -> None:
        """Add pairs of which one response is better.

        Args:
            margins: (B,) score of the chosen response minus that of the rejected one.
        """
        margins = margins.to(self.table)
        confidence = margins.abs().sigmoid()
        right = (1 + margins.sign()) / 2
        bins = ((confidence - 0.5) * 2 * self.num_bins).long().clamp(max=self.num_bins - 1)
        self.table.index_add_(0, bins, torch.stack([torch.ones_like(margins), confidence, right], dim=1))
        self.squares += margins.neg().sigmoid().square().sum()

    def compute(self) -> dict[str, Tensor]:
        """ECE and Brier score by name, as scalars; nothing without pairs."""
        count, confidence, right = self.table.unbind(1)
        if count.sum() == 0:
            return {}
        values = ((confidence - right).abs().sum() / count.sum(), self.squares / count.sum())
        return dict(zip(CALIBRATION_METRICS, values, strict=True))

    def bins(self) -> list[ReliabilityBin]:
        """The inhabited bins over all ranks, which must all ask."""
        rows = sum_over_ranks(self.table).tolist()
        edges = [0.5 + number / (2 * self.num_bins) for number in range(self.num_bins + 1)]
        return [
            ReliabilityBin(low, high, confidence / count, right / count, round(count))
            for low, high, (count, confidence, right) in zip(edges, edges[1:], rows, strict=False)
            if count
        ]
