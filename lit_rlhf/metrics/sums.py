"""Sums over everything that was seen: the only state of a metric that no split over batches and ranks can bend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric


class Sums(Metric):
    """A metric whose states are sums over everything since the last reset, and over all ranks when it is computed.

    They are part of checkpoints: a resumed run reports what an unbroken one does. A module that holds the metric takes
    it along to its device, but not to its dtype: a sum in bfloat16 stops growing at 256.
    """

    full_state_update = False

    @property
    def update_called(self) -> bool:
        """True: a sum of nothing is known, and so is one from a checkpoint; torchmetrics need not warn of either."""
        return True

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """Begin a sum at 0.

        Args:
            name: the attribute that holds it.
            shape: of the sum.
            dtype: that it is kept in.
        """
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum", persistent=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        device = fn(torch.zeros(0, device=self.device)).device
        widest = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no wider one

        def move(state: Tensor) -> Tensor:
            return state.to(device, widest if state.dtype == torch.float64 else state.dtype)

        return super()._apply(move, exclude_state)
