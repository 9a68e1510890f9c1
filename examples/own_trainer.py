"""DPOModule in a Trainer, with a DataLoader, a logger and callbacks that are not this package's.

    python examples/own_trainer.py --steps 40 --out runs/own_trainer

The rows come from a plain torch Dataset, one pair at a time; ``Collate`` makes the documented batch of sixteen.
The model is a PEFT model made here, so its adapter keeps the name and the settings that it was given. Everything else
is Lightning as you know it: CSVLogger, ModelCheckpoint, LearningRateMonitor, EarlyStopping, a callback of your own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TypedDict

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from datamodules import TokenPair, pack_pairs
from lit_rlhf import DPOModule
from lit_rlhf.embedded import resolve
from lit_rlhf.types import PreferenceBatch


class Row(TypedDict):
    """A question, a better and a worse answer, as messages; and where the row stands."""

    prompt: list[dict[str, str]]
    chosen: list[dict[str, str]]
    rejected: list[dict[str, str]]
    address: str


class Pairs(Dataset[Row]):
    """Rows of a JSON Lines file, in memory."""

    def __init__(self, file: Path) -> None:
        lines = file.read_text(encoding="utf-8").splitlines()
        self.rows = [{**json.loads(line), "address": f"{file.name}:{number}"} for number, line in enumerate(lines, 1)]

    def __len__(self) -> int:
        """Rows of the file."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """One row."""
        return self.rows[index]


class Collate:
    """Turns rows into the batch of one optimizer step: token ids in, a forest out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, token_budget: int) -> None:
        self.tokenizer = tokenizer
        self.token_budget = token_budget

    def __call__(self, rows: list[Row]) -> PreferenceBatch:
        """Tokenise and pack the pairs of one step."""
        return pack_pairs([self._pair(row) for row in rows], self.token_budget)

    def _pair(self, row: Row) -> TokenPair:
        prompt = self._ids(row["prompt"], add_generation_prompt=True)
        chosen, rejected = (self._ids(row["prompt"] + row[side]) for side in ("chosen", "rejected"))
        return TokenPair(prompt, chosen[len(prompt) :], rejected[len(prompt) :], row=row["address"])

    def _ids(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class MarginWatch(Callback):
    """A callback of your own sees every metric by its name."""

    def __init__(self) -> None:
        self.margins: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the held-out margin."""
        if not trainer.sanity_checking:
            self.margins.append(float(trainer.callback_metrics["val/rewards/margin"]))
            print(f"step {trainer.global_step}: held-out reward margin {self.margins[-1]:.3f}")


def main(steps: int, out: Path) -> list[float]:
    """Train for some steps and save the adapter.

    Args:
        steps: optimizer steps.
        out: folder of the run.

    Returns:
        The held-out reward margin at every validation.
    """
    seed_everything(0)
    folder = resolve("embedded:tiny_llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))

    collate = Collate(tokenizer, token_budget=2048)
    train, held_out = (Pairs(Path(resolve(f"embedded:dpo_{split}.jsonl"))) for split in ("train", "validation"))
    loaders = (
        DataLoader(train, batch_size=16, shuffle=True, collate_fn=collate),
        DataLoader(held_out, batch_size=64, collate_fn=collate),
    )

    module = DPOModule(policy, beta=0.1, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3))
    watch = MarginWatch()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=max(1, steps // 2),
        gradient_clip_val=1.0,
        log_every_n_steps=5,
        logger=CSVLogger(out, name="", version=""),
        callbacks=[
            ModelCheckpoint(out / "checkpoints", monitor="val/loss"),
            EarlyStopping("val/loss", patience=5),
            LearningRateMonitor(),
            watch,
        ],
        enable_progress_bar=False,
        default_root_dir=out,
    )
    trainer.fit(module, *loaders)
    module.model.save(out)
    print(f"adapter: {out / 'adapter_model.safetensors'}")
    return watch.margins


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps")
    parser.add_argument("--out", type=Path, default=Path("runs/own_trainer"), help="folder of the run")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.out)
