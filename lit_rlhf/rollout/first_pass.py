"""One forward pass for two uses: responses are measured, and the first step learns from what was just computed.

Before an iteration's first optimizer step the policy that measures and the policy that learns are the same. Where all
that the first step learns from fits one micro-batch, its pass is therefore run once, with its graph, while measuring,
and the graph waits for the losses. The numbers are the same, and so is the peak of memory: one micro-batch's
activations exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from lit_rlhf.rollout.packing import RolloutMicroBatch
from lit_rlhf.types import Forest

Said = TypeVar("Said")


class FirstPass(Generic[Said]):
    """What was computed while measuring, until it is asked for again.

    Args:
        run: how a micro-batch is computed; None = plainly.
    """

    def __init__(self, run: Callable[[RolloutMicroBatch, Callable[[Forest], Said]], Said] | None = None) -> None:
        self._run = run or _run
        self._members: list[int] | None = None
        self._said: Said | None = None

    def expect(self, micro_batch: RolloutMicroBatch | None) -> None:
        """Forget what waits, and keep what is computed next for this micro-batch.

        Args:
            micro_batch: all that the first step will learn from; None = nothing is kept.
        """
        self._members = None if micro_batch is None else micro_batch.members.tolist()
        self._said = None

    def __call__(self, micro_batch: RolloutMicroBatch, compute: Callable[[Forest], Said]) -> Said:
        """What a model says of a micro-batch, with its graph where that was kept, or gradients are on.

        Args:
            micro_batch: some responses of the iteration.
            compute: the same of both calls.
        """
        if self._members is None or micro_batch.members.tolist() != self._members:
            return self._run(micro_batch, compute)
        if self._said is None:
            with torch.enable_grad():
                self._said = self._run(micro_batch, compute)
            return self._said
        said = self._said
        self.expect(None)
        return said


def _run(micro_batch: RolloutMicroBatch, compute: Callable[[Forest], Said]) -> Said:
    return compute(micro_batch.forest)
