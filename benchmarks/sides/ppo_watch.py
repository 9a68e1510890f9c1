"""What our sides of the PPO benchmarks share: iterations that are measured phase by phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import peft
import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from ppo_meter import PhaseMeter

import lit_rlhf
from datamodules import PromptDataModule
from lit_rlhf import PPOModule
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.rollout.sampling.request import SamplingRequest
from lit_rlhf.types import Rollouts

VERSIONS = {package.__name__: package.__version__ for package in (lit_rlhf, lightning, transformers, peft, torch)}


class CountedSampler(CachedSampler):
    """The default sampler; the meter learns how long responses are."""

    def __init__(self, meter: PhaseMeter) -> None:
        super().__init__()
        self.meter = meter

    def __call__(self, backbone: Backbone, request: SamplingRequest) -> Rollouts:
        """Draw one response per seed."""
        rollouts = super().__call__(backbone, request)
        self.meter.count(rollouts.lengths.tolist())
        return rollouts


class Watch(Callback):
    """Feeds the meter, and keeps the course of score and KL."""

    def __init__(self, meter: PhaseMeter) -> None:
        self.meter = meter
        self.course: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The models are loaded."""
        phases = pl_module.phases
        phases.watcher = lambda: self.meter.enter(phases.now.name)
        self.meter.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """An iteration has ended."""
        self.meter.step()
        self.course.append({name: float(trainer.callback_metrics[f"rollout/{name}"]) for name in ("score", "kl")})


def train(
    module: PPOModule,
    data: PromptDataModule,
    callbacks: list[Callback],
    *,
    device: str,
    dtype: str,
    scratch: str,
    steps: int,
) -> None:
    """Run iterations in a plain Trainer."""
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if dtype == "bfloat16" else "32-true",
        max_epochs=1,
        limit_train_batches=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=Path(scratch),
    )
    trainer.fit(module, datamodule=data)
