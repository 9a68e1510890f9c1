"""Which combinations of algorithm, weights, precision and strategy are refused, and what to take instead.

All that is refused stands in one table, and is refused before a model is loaded wherever that can be told. What is not
in the table works: docs/strategies.md names the test of each combination.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import bitsandbytes
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from lit_rlhf.models.moe.four_bit import has_four_bit_experts

_NAMES: tuple[tuple[type[Strategy], str], ...] = (
    (SingleDeviceStrategy, "single"),
    (DDPStrategy, "ddp"),
    (FSDPStrategy, "fsdp"),
    (DeepSpeedStrategy, "deepspeed"),
    (ModelParallelStrategy, "model_parallel"),
)


class Combination(NamedTuple):
    """What a run is made of.

    Args:
        strategy: "single", "ddp", "fsdp2", "fsdp", "deepspeed", "model_parallel" or "other".
        precision: of the Trainer, such as "bf16-true".
        is_int8: whether some weights are held in 8 bits.
        learns_from_rollouts: whether the algorithm takes its steps by hand, as PPO and its kin do.
        has_four_bit_experts: whether experts of a mixture are held in 4 bits.
        is_compiled: whether the module went through ``torch.compile`` as a whole.
    """

    strategy: str
    precision: str = "32-true"
    is_int8: bool = False
    learns_from_rollouts: bool = False
    has_four_bit_experts: bool = False
    is_compiled: bool = False


class Refusal(NamedTuple):
    """Combinations that cannot be.

    Args:
        applies: whether a combination is one of them.
        message: why, and what to take instead.
    """

    applies: Callable[[Combination], bool]
    message: str


REFUSALS = (
    Refusal(
        lambda run: run.strategy == "fsdp" and run.learns_from_rollouts,
        "trainer.strategy is 'fsdp': Lightning's FSDP cannot run manual optimization, so it cannot run this algorithm; "
        "take 'fsdp2'",
    ),
    Refusal(
        lambda run: run.strategy == "fsdp",
        "trainer.strategy is 'fsdp': Lightning's FSDP cannot run the several backward passes of a step, and gathers a "
        "model with adapters as a whole; take 'fsdp2'",
    ),
    Refusal(
        lambda run: run.strategy == "deepspeed",
        "trainer.strategy is 'deepspeed': its engine takes every backward pass for a step of its own, and a step here "
        "has several; take 'fsdp2', which shards as its stage 3 does, or 'ddp'",
    ),
    Refusal(
        lambda run: run.strategy == "model_parallel",
        "trainer.strategy is ModelParallelStrategy, which shards nothing by itself; take 'fsdp2'",
    ),
    Refusal(
        lambda run: run.strategy == "other",
        "trainer.strategy is none of those that were tried with this package; take 'auto', 'ddp' or 'fsdp2'",
    ),
    Refusal(
        lambda run: run.strategy == "fsdp2" and run.is_int8,
        "trainer.strategy is 'fsdp2' and weights are held in int8, whose scales bitsandbytes keeps on the very tensors "
        "that sharding replaces; take backbone.quantization 'nf4', or trainer.strategy 'ddp'",
    ),
    Refusal(
        lambda run: run.strategy == "fsdp2" and run.precision == "16-true",
        "trainer.strategy is 'fsdp2' and trainer.precision '16-true', whose gradients underflow when they are averaged "
        "over ranks; take 'bf16-true'",
    ),
    Refusal(
        lambda run: run.precision == "16-mixed" and run.learns_from_rollouts,
        "trainer.precision is '16-mixed', which needs a scaled loss, and gradients would be clipped before that is "
        "undone; take 'bf16-mixed'",
    ),
    Refusal(
        lambda run: run.strategy == "fsdp2" and run.has_four_bit_experts,
        "trainer.strategy is 'fsdp2' and experts are held in nf4, one by one, which sharding would cut across; take "
        "backbone.quantization 'none', or trainer.strategy 'ddp', where each rank holds all of the 4-bit model",
    ),
    Refusal(
        lambda run: run.is_compiled,
        "torch.compile was given the whole module, whose steps are no one graph: they sample, log and go from one "
        "micro-batch to the next; give the Trainer the module itself",
    ),
)
"""What is refused; the first that applies is told."""


def refuse(run: Combination) -> None:
    """Refuse a combination that cannot be.

    Raises:
        ValueError: saying why, and what to take instead.

    Example:
        >>> refuse(Combination("fsdp2", precision="bf16-true"))
    """
    message = next((refusal.message for refusal in REFUSALS if refusal.applies(run)), None)
    if message is not None:
        raise ValueError(message)


def refuse_combination(module: LightningModule) -> None:
    """Refuse what a module and its Trainer, where it has one, cannot be together.

    Raises:
        ValueError: saying why, and what to take instead.
    """
    try:
        trainer = module.trainer
    except RuntimeError:  # it has none
        return
    strategy = trainer.strategy
    is_int8 = any(isinstance(part, bitsandbytes.nn.Linear8bitLt) for part in module.modules())
    four_bit = has_four_bit_experts(module)
    by_hand, is_compiled = not module.automatic_optimization, module._compiler_ctx is not None
    refuse(Combination(_name(strategy), trainer.precision, is_int8, by_hand, four_bit, is_compiled))


def _name(strategy: Strategy) -> str:
    if isinstance(strategy, ModelParallelStrategy) and type(strategy) is not ModelParallelStrategy:
        return "fsdp2"
    return next((name for kind, name in _NAMES if isinstance(strategy, kind)), "other")
