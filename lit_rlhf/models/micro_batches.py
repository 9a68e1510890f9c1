"""One optimizer step from many micro-batches, in Lightning's automatic optimization and in manual optimization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from lit_rlhf.models.moe.balancing import Share, StepBalance, trained_backbone
from lit_rlhf.models.moe.routers import find_routers
from lit_rlhf.models.whole import is_sharded, whole
from lit_rlhf.ranks import most_over_ranks
from lit_rlhf.types import Forest, Segment

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
    """A loss of zero, for a batch that only waits, or that brings no rows.

    It touches every trained parameter, as DDP wants it; where weights are sharded no rank waits for another one's.
    """
    nothing = torch.zeros((), device=module.device, requires_grad=True)
    if is_sharded(module):
        return nothing
    return sum((p.sum() * 0.0 for p in module.parameters() if p.requires_grad), start=nothing)


def in_step(
    module: nn.Module, micro_batches: Sequence[MicroBatch], idle: Callable[[Forest], object]
) -> Iterator[MicroBatch]:
    """Micro-batches, and behind them as many idle passes as another rank has micro-batches more.

    Where weights are sharded each layer is gathered from all ranks whenever one of them computes it, so all compute
    equally often. Where weights are whole there are no idle passes.

    Args:
        module: that the passes go through, or that holds it.
        micro_batches: of this rank, one pass each; maybe none.
        idle: the same pass over a forest of two tokens; nothing of it counts.
    """
    forests = _idle_forests(module, len(micro_batches))  # agreed on before anything is computed
    yield from micro_batches
    for forest in forests:
        idle(forest)


def _idle_forests(module: nn.Module, num_passes: int) -> list[Forest]:
    if not is_sharded(module):
        return []
    device = next(module.parameters()).device
    forest = Forest.pack([[Segment([0], [False]), Segment([0], [True], 0)]]).to(device)
    return [forest] * (most_over_ranks(num_passes, device) - num_passes)


class Passes(NamedTuple, Generic[MicroBatch]):
    """Micro-batches of one kind, and what they add to the loss of a step.

    Args:
        micro_batches: maybe none.
        loss_of: share of the step's loss that a micro-batch contributes, so that the shares sum to the loss.
        idle: what the model says of a forest, by the same passes as for a micro-batch.
    """

    micro_batches: Sequence[MicroBatch]
    loss_of: Callable[[MicroBatch], Tensor]
    idle: Callable[[Forest], Tensor]

    def shares(self, module: LightningModule) -> list[Share]:
        """Each share of the loss; as many as on any other rank where weights are sharded."""
        ours: list[Share] = [(micro_batch, partial(self.loss_of, micro_batch)) for micro_batch in self.micro_batches]
        return [*ours, *((None, partial(self._idle_share, forest)) for forest in _idle_forests(module, len(ours)))]

    def _idle_share(self, forest: Forest) -> Tensor:
        return self.idle(forest).sum() * 0.0


def backward_all_but_last(module: LightningModule, *passes: Passes[Any]) -> Tensor:
    """Run micro-batches one after another, and leave the last backward pass to Lightning.

    Only one micro-batch's activations exist at a time. Whole gradients are exchanged between ranks once, in the last
    pass. Lightning clears gradients between ``training_step`` and its own backward pass, so a module that calls this
    must clear them elsewhere: after the optimizer's step.

    Args:
        module: in training, attached to a Trainer.
        *passes: of each kind in turn.

    Returns:
        A scalar with the value of the whole loss and the graph of the last share, times the number of accumulated
        batches, by which Lightning divides it.
    """
    *others, last = _shares(module, passes)
    total = torch.zeros((), device=module.device)
    with _local_gradients(module):
        for share in others:
            loss = share()
            module.trainer.strategy.backward(loss, None)
            total = total + loss.detach()
    return (last() + total) * module.trainer.accumulate_grad_batches


def accumulate_gradients(module: LightningModule, *passes: Passes[Any]) -> None:
    """Run micro-batches and their backward passes one after another, in manual optimization.

    Only one micro-batch's activations exist at a time. Whole gradients are exchanged between ranks once, in the last
    pass; a rank without micro-batches takes part in that with gradients of zero.

    Args:
        module: in training, attached to a Trainer.
        *passes: of each kind in turn.
    """
    *others, last = _shares(module, passes)
    with _local_gradients(module):
        for share in others:
            module.manual_backward(share())
    module.manual_backward(last())


def _shares(module: LightningModule, passes: Sequence[Passes[Any]]) -> list[Callable[[], Tensor]]:
    """The shares of a step's loss, at least one; those of a mixture of experts keep its experts in balance."""
    found = [share for kind in passes for share in kind.shares(module)] or [(None, partial(no_loss, module))]
    backbone = trained_backbone(module)
    if backbone is None or not find_routers(backbone.model):
        return [loss for _, loss in found]
    balance = StepBalance(module, backbone, [one for one, _ in found if one is not None], in_step)
    last = len(found) - 1
    return [partial(balance.share, one, loss, is_last=at == last) for at, (one, loss) in enumerate(found)]


def _local_gradients(module: LightningModule) -> AbstractContextManager[None]:
    """Gradients are not exchanged inside, where whole ones fit every rank anyway."""
    strategy = module.trainer.strategy
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


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
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if module.trainer.precision != "16-mixed" and not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient is not finite at step {module.global_step}; nothing was updated")
    return norm
