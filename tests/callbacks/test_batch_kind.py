"""Data of another kind are refused before anything trips over them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning.pytorch import LightningModule

from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.callbacks.batch_kind import BatchKind, _kinds
from lit_rlhf.types import (
    GradedBatch,
    InstructionBatch,
    JudgedStepsBatch,
    PreferenceBatch,
    PromptAndTextBatch,
    PromptBatch,
)

TAKEN = {
    DPOModule: (PreferenceBatch,),
    RewardModule: (PreferenceBatch, GradedBatch, JudgedStepsBatch),
    SFTModule: (InstructionBatch,),
    PPOModule: (PromptBatch, PromptAndTextBatch),
}


@pytest.mark.parametrize("module", TAKEN)
def test_an_algorithm_says_what_it_takes(module):
    assert _kinds(module) == TAKEN[module]


class Annotated(LightningModule):
    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        pass


class Silent(LightningModule):
    def training_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize(
    "hook", ["on_train_batch_start", "on_validation_batch_start", "on_test_batch_start", "on_predict_batch_start"]
)
def test_what_is_refused_and_what_is_not(hook):
    look = getattr(BatchKind(), hook)
    trainer = SimpleNamespace(datamodule=SimpleNamespace())
    with pytest.raises(ValueError, match="Annotated takes a PreferenceBatch, and SimpleNamespace gives a PromptBatch"):
        look(trainer, Annotated(), PromptBatch((), {}), 0)
    look(trainer, Annotated(), PreferenceBatch((), {}), 0)
    look(trainer, Silent(), PromptBatch((), {}), 0)
    with pytest.raises(ValueError, match="and the data loader gives a list"):
        look(SimpleNamespace(datamodule=None), Annotated(), [1], 0)
