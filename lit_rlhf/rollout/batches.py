"""What an iteration reads of a batch: prompts, and texts to imitate where there are some and they have a weight."""

from __future__ import annotations

import warnings

from lit_rlhf.types import InstructionBatch, PromptAndTextBatch, PromptBatch

RolloutBatch = PromptBatch | PromptAndTextBatch
"""What an iteration reads."""


def prompts_of(batch: RolloutBatch) -> PromptBatch:
    """The prompts of a batch, with or without texts beside them."""
    return batch.prompts if isinstance(batch, PromptAndTextBatch) else batch


def texts_of(batch: RolloutBatch, ptx_coef: float) -> InstructionBatch | None:
    """The texts to imitate of a batch; None where they weigh nothing.

    Args:
        batch: with texts beside the prompts, or without.
        ptx_coef: their weight.

    Raises:
        ValueError: if they have a weight and there are none.
    """
    if isinstance(batch, PromptAndTextBatch):
        if not ptx_coef:
            warnings.warn("ptx_coef is 0: the texts beside the prompts are read and not learnt from", stacklevel=2)
        return batch.texts if ptx_coef else None
    if ptx_coef:
        raise ValueError(
            f"ptx_coef is {ptx_coef}, but the data have no texts to imitate: give some by "
            "datamodules.PromptAndTextDataModule, or set ptx_coef to 0"
        )
    return None


def prompts_alone(batch: RolloutBatch) -> PromptBatch:
    """The prompts of a batch, for an algorithm that has no use for texts beside them.

    Raises:
        ValueError: if there are some.
    """
    if isinstance(batch, PromptAndTextBatch):
        raise ValueError(
            "the data have texts to imitate beside the prompts, which only PPOModule mixes in (ptx_coef): "
            "leave them out"
        )
    return batch
