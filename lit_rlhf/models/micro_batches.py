"""One optimizer step from many micro-batches, in Lightning's automatic optimization and in manual optimization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Generic, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

MicroBatch = TypeVar("MicroBatch")


class StepWindow(Generic[MicroBatch]):
    """Collects the micro-batches of one optimizer step, which may come in several accumulated batches.

    They wait until the step is due, so that everything can be divided by the counts of the whole step.

    Attributes:
        is_due: whether the optimizer steps on the batch that was added last.
    """

    def __init__(self) -> None:
        self.is_due = False
        self._waiting: list[MicroBatch] = []

    def collect(
        self, module: LightningModule, micro_batches: Sequence[MicroBatch], batch_idx: int
    ) -> list[MicroBatch] | None:
        """Add a batch; all that waited once the optimizer steps on this batch (maybe none), None before.

        Args:
            module: in training, attached to a Trainer.
            micro_batches: of the batch.
            batch_idx: of the batch in the epoch.
        """
        if batch_idx == 0:
            self._waiting = []
        self._waiting.extend(micro_batches)
        trainer = module.trainer
        self.is_due = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if not self.is_due:
            return None
        due, self._waiting = self._waiting, []
        return due


def no_loss(module: LightningModule) -> Tensor:
    """A loss of zero that touches every trained parameter, for a batch that brings no rows or only waits."""
    return torch.stack([parameter.sum() * 0.0 for parameter in module.parameters() if parameter.requires_grad]).sum()


def backward_all_but_last(
    module: LightningModule, micro_batches: Sequence[MicroBatch], loss_of: Callable[[MicroBatch], Tensor]
) -> Tensor:
    """Run micro-batches one after another, and leave the last backward pass to Lightning.

    Only one micro-batch's activations exist at a time. Gradients are exchanged between ranks once, in the last pass.
    Lightning clears gradients between ``training_step`` and its own backward pass, so a module that calls this must
    clear them elsewhere: after the optimizer's step.

    Args:
        module: in training, attached to a Trainer.
        micro_batches: at least one.
        loss_of: share of the step's loss that a micro-batch contributes, so that the shares sum to the loss.

    Returns:
        A scalar with the value of the whole loss and the graph of the last share, times the number of accumulated
        batches, by which Lightning divides it.
    """
    strategy = module.trainer.strategy
    local = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
    total = torch.zeros((), device=module.device)
    with local:
        for micro_batch in micro_batches[:-1]:
            loss = loss_of(micro_batch)
            strategy.backward(loss, None)
            total = total + loss.detach()
    return (loss_of(micro_batches[-1]) + total) * module.trainer.accumulate_grad_batches


def accumulate_gradients(
    module: LightningModule, micro_batches: Sequence[MicroBatch], loss_of: Callable[[MicroBatch], Tensor]
) -> None:
    """Run micro-batches and their backward passes one after another, in manual optimization.

    Only one micro-batch's activations exist at a time. Gradients are exchanged between ranks once, in the last pass; a
    rank without micro-batches takes part in that with gradients of zero.

    Args:
        module: in training, attached to a Trainer.
        micro_batches: maybe none.
        loss_of: share of the step's loss that a micro-batch contributes, so that the shares sum to the loss.
    """
    strategy = module.trainer.strategy
    local = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
    with local:
        for micro_batch in micro_batches[:-1]:
            module.manual_backward(loss_of(micro_batch))
    module.manual_backward(loss_of(micro_batches[-1]) if micro_batches else no_loss(module))


def clip_and_step(module: LightningModule, max_grad_norm: float) -> Tensor:
    """Clip the gradients, step the optimizer and clear them, in manual optimization.

    Args:
        module: in training, attached to a Trainer, with the gradients of a whole step and one optimizer.
        max_grad_norm: norm that all gradients together are clipped to; 0 = none.

    Returns:
        The norm before clipping.

    Raises:
        FloatingPointError: if it is not finite; nothing was updated then.
    """
    optimizer = cast(LightningOptimizer, module.optimizers())
    norm = gradient_norm(module)
    if max_grad_norm:
        module.clip_gradients(optimizer.optimizer, max_grad_norm, "norm")
    optimizer.step()
    optimizer.zero_grad()
    return norm


def gradient_norm(module: LightningModule) -> Tensor:
    """The norm of all gradients, before clipping.

    Args:
        module: in training, attached to a Trainer, with the gradients of a whole step.

    Raises:
        FloatingPointError: if it is not finite; a loss scaler skips such steps by itself.
    """
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if module.trainer.precision != "16-mixed" and not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient is not finite at step {module.global_step}; nothing was updated")
    return norm
