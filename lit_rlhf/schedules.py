"""Optimizers with their learning-rate schedules over the whole run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupDecay(LambdaLR):
    """Rise linearly from 0, then stay or fall over what is left of the run; stepped once per optimizer step.

    Args:
        optimizer: whose learning rates are scheduled.
        warmup_steps: optimizer steps of the rise; below 1 a fraction of the run.
        decay: "constant" stays at the peak; "linear" and "cosine" fall from it.
        final_fraction: of the peak, reached at the last step, 0-1.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = WarmupDecay(optimizer, warmup_steps=2, decay="linear").over(10)
        >>> [round(schedule.factor(step), 2) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: float = 0,
        decay: Literal["constant", "linear", "cosine"] = "constant",
        final_fraction: float = 0.0,
    ) -> None:
        if warmup_steps < 0 or not 0.0 <= final_fraction <= 1.0:
            raise ValueError(
                f"warmup_steps is {warmup_steps} and final_fraction is {final_fraction}; "
                "the first must not be negative, the second must lie in 0-1"
            )
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.final_fraction = final_fraction
        self.total_steps: int | None = None
        super().__init__(optimizer, lambda step: self.factor(step))  # noqa: PLW0108 - a method would be put into checkpoints

    def over(self, total_steps: float) -> WarmupDecay:
        """Tell the schedule how many optimizer steps the run has; the algorithm does it when training begins.

        Raises:
            ValueError: if the schedule decays and the length of the run is not known.
        """
        if math.isinf(total_steps) and (self.decay != "constant" or 0 < self.warmup_steps < 1):
            raise ValueError(
                f"lr_scheduler: decay '{self.decay}' needs to know how long the run is: set trainer.max_steps, "
                "or decay 'constant' with warmup_steps in steps"
            )
        self.total_steps = None if math.isinf(total_steps) else int(total_steps)
        self._last_lr = [base * self.factor(self.last_epoch) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
        return self

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at an optimizer step, counted from 0."""
        warmup = self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * (self.total_steps or 0)
        if step < warmup:
            return (step + 1) / warmup if warmup >= 1 else 1.0
        if self.decay == "constant" or self.total_steps is None:
            return 1.0
        progress = min(1.0, (step - warmup) / max(1.0, self.total_steps - warmup))
        shape = 1.0 - progress if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_fraction + (1.0 - self.final_fraction) * shape

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on at the saved step; shape and length are those of this run, which may be longer than the saved one."""
        super().load_state_dict({key: state_dict[key] for key in state_dict if key not in _SHAPE})


class ParameterGroup(NamedTuple):
    """Parameters that are trained with a learning rate of their own.

    Args:
        parameters: maybe none.
        lr_factor: their learning rate, in learning rates of the optimizer.
    """

    parameters: list[nn.Parameter]
    lr_factor: float = 1.0


def optimization(
    module: LightningModule,
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable,
    groups: Sequence[ParameterGroup] = (),
    steps_per_batch: int = 1,
) -> OptimizerLRSchedulerConfig:
    """One optimizer over what a module trains, and one schedule stepped with it: what ``configure_optimizers`` returns.

    Args:
        module: attached to a Trainer.
        optimizer: makes the optimizer from the trained parameters.
        lr_scheduler: makes the schedule; a :class:`WarmupDecay` is told how long the run is.
        groups: of parameters, each with its share of the learning rate; none = one group of all that is trained.
        steps_per_batch: optimizer steps of a batch, whose schedule is stepped once per batch: ``max_steps`` counts the
            former.
    """
    if groups:
        made = optimizer([{"params": group.parameters} for group in groups if group.parameters])
        for group, into in zip([group for group in groups if group.parameters], made.param_groups, strict=True):
            into["lr"] *= group.lr_factor
    else:
        made = optimizer([parameter for parameter in module.parameters() if parameter.requires_grad])
    schedule = lr_scheduler(made)
    if isinstance(schedule, WarmupDecay):
        most = module.trainer.max_steps
        steps = module.trainer.estimated_stepping_batches
        schedule.over(steps if most == -1 else min(steps, math.ceil(most / steps_per_batch)))
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


_SHAPE = ("warmup_steps", "decay", "final_fraction", "total_steps")
