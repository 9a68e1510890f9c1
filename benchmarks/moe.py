"""A small real Mixtral, upcycled from a Llama that writes little stories, through SFT, reward model, DPO and PPO.

    python benchmarks/moe.py --model DIR --stories DIR --pairs DIR --out OUT

Base and experts are in 4 bits, adapters on attention, experts and routers, with a load-balancing loss. Each run is held
to what the model began with: likelihood of held-out stories, accuracy on held-out pairs, share of positive words in
responses to held-out prompts. One thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from side_by_side import commit, hardware
from sides.ppo_stories import positive_words

from datamodules import PreferenceDataModule, PromptDataModule, SFTDataModule
from lit_rlhf import BackboneConfig, DPOModule, LoraOptions, PPOModule, RewardModule, SFTModule
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import KLOptions, UpdateOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions
from lit_rlhf.schedules import WarmupDecay

WATCHED = {"sft": "val/nll", "reward": "val/scores/accuracy", "dpo": "val/rewards/accuracy", "ppo": "val/score"}
ROUTER = ("aux_loss", "load_max", "load_min", "load_entropy")


def positive(response: str) -> float:
    """Share of six positive words in one response."""
    return positive_words([response])[0]


def backbone(model: str) -> BackboneConfig:
    """The Mixtral of every run."""
    lora = LoraOptions(r=8, alpha=16, target_experts=True)
    return BackboneConfig(
        model, quantization="nf4", dtype="float32", lora=lora, train_router=True, router_aux_loss_coef=0.01
    )


def settings(lr: float) -> dict[str, Any]:
    """Optimizer and schedule."""
    return {
        "optimizer": partial(torch.optim.AdamW, lr=lr, weight_decay=0.0),
        "lr_scheduler": partial(WarmupDecay, decay="constant"),
    }


def sft(options: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    """Stories, answered to their first sentences."""
    files = [str(options.stories / f"{name}.jsonl") for name in ("train", "test")]
    data = SFTDataModule(
        files[0], files[1], tokenizer=options.model, batch_size=16, max_length=256, truncation="cut_end"
    )
    return SFTModule(backbone(options.model), **settings(2e-3)), data


def pairs(options: argparse.Namespace) -> PreferenceDataModule:
    """Pairs of continuations."""
    files = [str(options.pairs / f"{name}.jsonl") for name in ("train", "test")]
    return PreferenceDataModule(files[0], files[1], tokenizer=options.model, batch_size=16, max_length=256)


def reward(options: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    """Which of two continuations is preferred."""
    return RewardModule(backbone(options.model), **settings(2e-3)), pairs(options)


def dpo(options: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    """The same preference, without a reward model."""
    return DPOModule(backbone(options.model), beta=0.1, **settings(1e-3)), pairs(options)


def ppo(options: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    """Positive words in continuations of held-out openings."""
    files = [str(options.stories / f"{name}.jsonl") for name in ("train", "test")]
    data = PromptDataModule(files[0], files[1], tokenizer=options.model, batch_size=32)
    module = PPOModule(
        backbone(options.model),
        [WeightedReward(FunctionReward(positive))],
        sampling=SamplingOptions(max_new_tokens=48),
        kl=KLOptions(coef=0.01),
        updates=UpdateOptions(token_budget=4096),
        vf_coef=1.0,
        **settings(1e-3),
    )
    return module, data


RUNS: dict[str, tuple[Callable[..., tuple[LightningModule, LightningDataModule]], int]] = {
    "sft": (sft, 40),
    "reward": (reward, 80),
    "dpo": (dpo, 80),
    "ppo": (ppo, 100),
}
"""What is run, and for how many optimizer steps; of PPO's, four make an iteration."""


def measured(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one; what is watched before and after, the routers at the first and the last step, and seconds."""
    seed_everything(0)
    make, steps = RUNS[name]
    module, data = make(options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, log_every_n_steps=1, limit_val_batches=8,
        val_check_interval=None, check_val_every_n_epoch=10**6, num_sanity_val_steps=0, enable_model_summary=False,
        gradient_clip_val=None if name == "ppo" else 1.0, default_root_dir=options.out, **quiet,
    )  # fmt: skip
    (before,) = trainer.validate(module, data, verbose=False)
    begin = time.process_time()
    trainer.fit(module, data)
    seconds = time.process_time() - begin
    routers = {f"router/{part}": float(trainer.callback_metrics[f"train/router/{part}"]) for part in ROUTER}
    (after,) = trainer.validate(module, data, verbose=False)
    watched = WATCHED[name]
    return {"steps": steps, "before": before[watched], "after": after[watched], "seconds": seconds, **routers}


def main() -> None:
    """Run all that is asked for, and write what they came to."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", required=True, help="folder of a small Mixtral and its tokenizer")
    options.add_argument("--stories", type=Path, required=True, help="folder of train.jsonl and test.jsonl, completed")
    options.add_argument("--pairs", type=Path, required=True, help="folder of train.jsonl and test.jsonl, in pairs")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    given = options.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    found = {name: measured(name, given) for name in given.only}
    head = {"commit": commit(), "date": datetime.date.today().isoformat(), "hardware": hardware("cpu")}
    (given.out / "moe.json").write_text(json.dumps({**head, "runs": found}, indent=1) + "\n")
    for name, numbers in found.items():
        print(name, WATCHED[name], {key: round(value, 4) for key, value in numbers.items()})


if __name__ == "__main__":
    main()
