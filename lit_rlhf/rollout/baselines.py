"""Baselines: what a return is compared with, where no critic and no other response says what to expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.models.heads.float32 import without_cast


class MovingMean(nn.Module):
    """An average of the means of the iterations before, the older the lighter.

    Args:
        momentum: share of the past, 0-1, below 1: about 1 / (1 - momentum) iterations matter.

    Attributes:
        past: (2,) float32, decaying sums of means and of ones. Part of checkpoints.

    Raises:
        ValueError: if ``momentum`` is out of its range.

    Example:
        >>> usual = MovingMean(momentum=0.5)
        >>> [round(float(usual(torch.tensor(mean))), 2) for mean in (3.0, 9.0, 0.0)]  # 3 itself, 3, (1.5 + 9) / 1.5
        [3.0, 3.0, 7.0]
    """

    def __init__(self, momentum: float) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum is {momentum}; it lies in 0-1, below 1")
        self.momentum = momentum
        self.past: Tensor
        self.register_buffer("past", torch.zeros(2))

    def forward(self, mean: Tensor) -> Tensor:
        """() the average so far, of the first mean that mean; it is then part of the past.

        Args:
            mean: () of this iteration.
        """
        total, weight = self.past.clone()
        self.past.lerp_(torch.stack([mean, torch.ones_like(mean)]), 1.0 - self.momentum)
        return total / weight if weight else mean

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move between devices, but stay in float32: in bfloat16 an average hardly moves."""
        return super()._apply(without_cast(fn), recurse)
