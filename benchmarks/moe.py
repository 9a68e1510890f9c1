"""A small real Mixtral, upcycled from a Llama that writes little stories, through SFT, reward model, DPO and PPO.

    python benchmarks/moe.py --model DIR --stories DIR

Base and experts are in 4 bits, adapters on attention, experts and routers, with a load-balancing loss. ``--stories``
holds train.jsonl and test.jsonl with a ``prompt`` (the opening of a story) and a ``completion`` (the rest). The true
preference is known: more positive words are better. SFT learns the stories; the reward model and DPO learn pairs of
passages of them; PPO is rewarded for the words themselves. Each run begins with the given model, and must reach its
gate on what it was not trained on. One thread; the order of what is drawn depends on the seed alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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

HERE = Path(__file__).parent
PASSAGE_WORDS = 24
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
ROUTER = ("aux_loss", "load_max", "load_min", "load_entropy", "mismatch")


def positive(response: str) -> float:
    """Share of six positive words in one response."""
    return positive_words([response])[0]


def passages(file: Path) -> Iterator[tuple[str, str]]:
    """The opening of a story, and each passage of its rest of so many words."""
    for line in file.read_text().splitlines():
        row = json.loads(line)
        words = row["completion"].split()
        for begin in range(0, len(words) - PASSAGE_WORDS + 1, PASSAGE_WORDS):
            yield row["prompt"], " " + " ".join(words[begin : begin + PASSAGE_WORDS])


def pairs_of(file: Path) -> list[dict[str, str]]:
    """Two passages each of any stories, under the opening of one; the one with more positive words is chosen.

    Both have equally many words, and no passage is in two pairs.
    """
    found = list(passages(file))
    random.Random(0).shuffle(found)
    rows = []
    for (prompt, one), (_, other) in zip(found[::2], found[1::2], strict=False):
        scores = positive(one), positive(other)
        if scores[0] != scores[1]:
            chosen, rejected = (one, other) if scores[0] > scores[1] else (other, one)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


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


def files(options: argparse.Namespace) -> list[str]:
    """Stories to train on and to hold out."""
    return [str(options.stories / f"{name}.jsonl") for name in ("train", "test")]


def preferences(options: argparse.Namespace) -> PreferenceDataModule:
    """Pairs of passages."""
    rows = [pairs_of(Path(file)) for file in files(options)]
    return PreferenceDataModule(*rows, tokenizer=options.model, batch_size=16, max_length=256)


def sft(options: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    """Stories, answered to their openings."""
    data = SFTDataModule(*files(options), tokenizer=options.model, batch_size=16, max_length=256, truncation="cut_end")
    return SFTModule(backbone(options.model), **settings(2e-3)), data


def reward(options: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    """Which of two passages is preferred."""
    return RewardModule(backbone(options.model), **settings(2e-3)), preferences(options)


def dpo(options: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    """The same preference, without a reward model."""
    return DPOModule(backbone(options.model), beta=0.1, **settings(2e-3)), preferences(options)


def ppo(options: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    """Positive words in responses to openings."""
    data = PromptDataModule(*files(options), tokenizer=options.model, batch_size=32)
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


class Run(NamedTuple):
    """What is trained, and how it is judged.

    Args:
        make: module and data.
        steps: optimizer steps; of PPO's, four make an iteration.
        watched: what is measured on held-out rows before and after.
        gate: what it must reach; below 0: at most so much, without the sign.
    """

    make: Callable[..., tuple[LightningModule, LightningDataModule]]
    steps: int
    watched: str
    gate: float

    def passes(self, number: float) -> bool:
        """Whether it reached its gate."""
        return number <= -self.gate if self.gate < 0 else number >= self.gate


RUNS = {
    "sft": Run(sft, 40, "val/nll", -1.37),
    "reward": Run(reward, 80, "val/scores/accuracy", 0.9),
    "dpo": Run(dpo, 120, "val/rewards/accuracy", 0.8),
    "ppo": Run(ppo, 100, "val/score", 0.4),
}


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one; what is watched before and after, the routers at the last step, and seconds of processor time."""
    seed_everything(0)
    run = RUNS[name]
    module, data = run.make(options)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=run.steps,
        max_epochs=-1,
        log_every_n_steps=1,
        check_val_every_n_epoch=10**6,
        gradient_clip_val=None if name == "ppo" else 1.0,
        **QUIET,
    )
    (before,) = trainer.validate(module, data, verbose=False)
    begin = time.process_time()
    trainer.fit(module, data)
    seconds = time.process_time() - begin
    told = {part: trainer.callback_metrics.get(f"train/router/{part}") for part in ROUTER}
    (after,) = trainer.validate(module, data, verbose=False)
    reached = after[run.watched]
    return {
        "run": name,
        "steps": run.steps,
        "watched": run.watched,
        "before": before.get(run.watched),  # DPO's policy is its reference then, and no pair has a winner
        "after": reached,
        "gate": "passed" if run.passes(reached) else "missed",
        **{part: None if value is None else float(value) for part, value in told.items()},
        "cpu_s": seconds,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """All runs as Markdown."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    head = [*runs[0]]
    rows = [head, ["---"] * len(head)]
    rows += [[f"{v:.0f}" if key == "cpu_s" else cell(v) for key, v in run.items()] for run in runs]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def write(options: argparse.Namespace, runs: list[dict[str, Any]]) -> Path:
    """JSON with every run, Markdown with the table."""
    packages = ("lightning", "torch", "transformers", "peft", "bitsandbytes")
    facts = {
        "hardware": hardware("cpu"),
        "load": options.load,
        "versions": {name: version(name) for name in packages},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": Path(options.model).resolve().name,
        "stories": options.stories.resolve().name,
        "rows": {Path(file).stem: len(pairs_of(Path(file))) for file in files(options)},
        "passage_words": PASSAGE_WORDS,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / "moe"
    stem.with_suffix(".json").write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n")
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items() if value)
    stem.with_suffix(".md").write_text(f"# A mixture of experts in 4 bits\n\n{table(runs)}\n\n{said}\n")
    return stem.with_suffix(".md")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a small Mixtral and its tokenizer")
    parser.add_argument("--stories", type=Path, required=True, help="folder of train.jsonl and test.jsonl")
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--load", default="", help="what else the machine was doing, in words")
    return parser.parse_args()


def main() -> None:
    """Run all that is asked for, and write what they came to."""
    options = parse()
    torch.set_num_threads(1)
    runs = []
    for name in options.only:
        runs.append(measured(name, options))
        print(runs[-1], flush=True)
    print(write(options, runs))
    if any(run["gate"] != "passed" for run in runs):
        sys.exit("a run missed its gate")


if __name__ == "__main__":
    main()
