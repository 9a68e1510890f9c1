"""What our sides of the training benchmarks share: the steps of a plan, measured, and their tokens, counted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import peft
import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from meter import Meter

import lit_rlhf
from datamodules import PreferenceDataModule
from lit_rlhf import BackboneConfig, LoraOptions
from lit_rlhf.types import PreferenceBatch, num_sequence_tokens

Plan = dict[str, Any]
Setting = dict[str, Any]


class Watch(Callback):
    """Feeds the meter, and counts tokens."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.counts: list[dict[str, int]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model is loaded."""
        self.meter.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """A step has ended."""
        self.meter.step()
        self.counts.append(_count(batch))


def _count(batch: PreferenceBatch) -> dict[str, int]:
    """Tokens of one step: real (a prompt once per response), unique (once per pair), and scored."""
    forests = [pairs.forest for pairs in batch.micro_batches]
    return {
        "real": sum(map(num_sequence_tokens, forests)),
        "unique": sum(forest.num_tokens for forest in forests),
        "scored": sum(len(forest.targets) for forest in forests),
    }


def backbone(plan: Plan, setting: Setting) -> BackboneConfig:
    """The model of the plan with a fresh adapter."""
    return BackboneConfig(
        plan["model"],
        quantization=plan["quantization"],
        dtype=plan["dtype"],
        gradient_checkpointing=setting["gradient_checkpointing"],
        fused=setting["fused"],
        lora=LoraOptions(r=plan["lora"]["r"], alpha=plan["lora"]["lora_alpha"]),
    )


def train(module: LightningModule, plan: Plan, setting: Setting) -> dict[str, Any]:
    """Train the steps of the plan."""
    watch = Watch(Meter(plan["device"], plan["warmup"]))
    data = PreferenceDataModule(
        plan["rows"],
        tokenizer=plan["model"],
        batch_size=plan["batch_size"],
        token_budget=setting["token_budget"],
        max_length=plan["max_length"],
        truncation="drop",
        shuffle_buffer=0,
    )
    trainer = Trainer(
        accelerator="cpu" if plan["device"] == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed" if plan["dtype"] == "bfloat16" else "32-true",
        max_steps=plan["steps"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
        default_root_dir=plan["scratch"],
    )
    trainer.fit(module, datamodule=data)
    versions = {package.__name__: package.__version__ for package in (lit_rlhf, lightning, transformers, peft, torch)}
    counts = {name: sum(step[name] for step in watch.counts[plan["warmup"] :]) for name in watch.counts[0]}
    return {**watch.meter.result(), "tokens": counts, "versions": versions}


def run(doc: str, make: Callable[[Plan, Setting], LightningModule], more: Callable[[], dict[str, Any]] = dict) -> None:
    """Measure one setting of a plan, as the command line says; ``more`` is what else there is to say in the end."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("setting", type=json.loads)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    if plan["device"] == "cpu":
        torch.set_num_threads(1)
    measured = train(make(plan, options.setting), plan, options.setting)
    options.out.write_text(json.dumps({**measured, **more()}))
