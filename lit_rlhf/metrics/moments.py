"""How scores spread, and how much of them is length."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.metrics.sums import Sums

MOMENT_METRICS = (
    "scores/num_responses",
    "scores/mean",
    "scores/std",
    "scores/chosen_std",
    "scores/rejected_std",
    "scores/length_correlation",
)
"""What :class:`ScoreMoments` reports; docs/algorithms/reward.md says what each one is."""

_ROUNDING = 1e-13
"""A spread that is less than this share of the sum of squares is what rounding leaves of none."""


class ScoreMoments(Sums):
    """Mean and spread of scores over everything since the last reset, over all ranks.

    Spreads are standard deviations with Bessel's correction; the correlation of score and length is Pearson's. What is
    not defined, such as the spread of one score, is left out.

    Example:
        >>> moments = ScoreMoments()
        >>> moments.update(torch.tensor([0.0, 2.0]), lengths=torch.tensor([3, 5]))
        >>> {name: float(value) for name, value in moments.compute().items() if name != "scores/std"}
        {'scores/num_responses': 2.0, 'scores/mean': 1.0, 'scores/length_correlation': 1.0}
    """

    def __init__(self) -> None:
        super().__init__()
        self.responses: Tensor
        self.chosen: Tensor
        self.rejected: Tensor
        self.add_sum("responses", 6)  # of 1, score, score^2, length, length^2, score * length
        self.add_sum("chosen", 3)  # of 1, score, score^2
        self.add_sum("rejected", 3)

    def update(
        self,
        scores: Tensor,
        lengths: Tensor,
        chosen_scores: Tensor | None = None,
        rejected_scores: Tensor | None = None,
    ) -> None:
        """Add responses, each once, and the pairs that they are in.

        Args:
            scores: (L,) of responses.
            lengths: (L,) their tokens.
            chosen_scores: (B,) of the preferred responses of pairs; None where nothing was preferred.
            rejected_scores: (B,) of the others.
        """
        x, y = scores.to(self.responses), lengths.to(self.responses)
        self.responses += torch.stack([torch.ones_like(x), x, x * x, y, y * y, x * y]).sum(1)
        if chosen_scores is not None and rejected_scores is not None:
            for sums, side in ((self.chosen, chosen_scores), (self.rejected, rejected_scores)):
                x = side.to(sums)
                sums.add_(torch.stack([torch.ones_like(x), x, x * x]).sum(1))

    def compute(self) -> dict[str, Tensor]:
        """The moments by name, as scalars."""
        count, score, _, length, _, product = self.responses
        spreads = _squared_spread(self.responses[:3]) * _squared_spread(self.responses[[0, 3, 4]])
        values = (
            count,
            score / count,
            _std(self.responses[:3]),
            _std(self.chosen),
            _std(self.rejected),
            (product - score * length / count) / spreads.sqrt(),
        )
        return {name: value for name, value in zip(MOMENT_METRICS, values, strict=True) if value.isfinite()}


def _squared_spread(sums: Tensor) -> Tensor:
    """Sum of squared distances from the mean, of (count, sum, sum of squares)."""
    count, total, squares = sums
    spread = squares - total * total / count
    return torch.where(spread > _ROUNDING * squares, spread, 0.0)


def _std(sums: Tensor) -> Tensor:
    return (_squared_spread(sums) / (sums[0] - 1).clamp(min=0)).sqrt()
