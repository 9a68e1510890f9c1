"""The strategy in a Trainer: by its name, its checkpoints, and what it hands to other strategies."""

from __future__ import annotations

import lightning

import lit_rlhf
from lit_rlhf.strategies.fsdp2 import FSDP2Strategy, register


def test_it_is_known_by_its_name():
    assert lit_rlhf.DPOModule  # as soon as an algorithm is
    register()
    trainer = lightning.Trainer(strategy="fsdp2", accelerator="cpu", devices=2, logger=False)
    assert type(trainer.strategy) is FSDP2Strategy
