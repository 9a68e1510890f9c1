"""What the comparisons of training runs with TRL share: rows, start, our Trainer, and the course of a comparison."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules import PreferenceDataModule, SFTDataModule
from lit_rlhf.types import PreferenceBatch

sys.path.append(str(Path(__file__).parents[1]))
from hh_rows import read_rows

TOLERANCE = 1e-4

Plan = dict[str, Any]


def rows_that_fit(path: Path, model: str, max_length: int, num_rows: int | None = None) -> list[dict[str, str]]:
    """The first rows of an HH file that need no truncation; all of them unless so many are asked for."""
    tokenizer = AutoTokenizer.from_pretrained(model)

    def longest(row: dict[str, str]) -> int:
        return max(len(tokenizer(row["prompt"] + row[key]).input_ids) for key in ("chosen", "rejected"))

    rows = list(islice((row for row in read_rows(path) if longest(row) < max_length), num_rows))
    if num_rows and len(rows) < num_rows:
        raise ValueError(f"{path} holds {len(rows)} rows under {max_length} tokens, {num_rows} are needed")
    return rows


def write_adapter(model: str, folder: Path) -> None:
    """A LoRA adapter on all linear layers, random on both sides."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0)
    save_stirred(get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config), folder)


def save_stirred(adapted: PeftModel, folder: Path) -> None:
    """Save an adapter whose B matrices are not zero, so that a reference is a frozen copy of it."""
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)


def write_rows(rows: list[dict[str, Any]], file: Path) -> str:
    """Write rows as .jsonl; the file's name."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def tokens_of(batch: PreferenceBatch) -> dict[int, dict[str, list[int]]]:
    """Tokens of prompt, chosen and rejected of every row, by row number."""
    tokens = {}
    for pairs in batch.micro_batches:
        forest = pairs.forest
        segments = forest.tokens.split(forest.lengths)
        for row, chosen, rejected in zip(pairs.rows, pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True):
            leaves = forest.leaves[chosen], forest.leaves[rejected]
            texts = (segments[segment].tolist() for segment in (forest.parents[leaves[0]], *leaves))
            names = ("prompt_ids", "chosen_ids", "rejected_ids")
            tokens[int(row.rpartition(":")[2])] = dict(zip(names, texts, strict=True))
    return tokens


class Course(Callback):
    """Collects what every step came to, and the tokens of every row, by row number.

    Args:
        columns: what is collected, by its name here: the metric that is logged.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.course: dict[str, list[float]] = {name: [] for name in columns}
        self.tokens: dict[int, dict[str, list[int]]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Keep what one step came to."""
        for name, column in self.columns.items():
            self.course[name].append(float(trainer.callback_metrics[column]))
        self.tokens.update(tokens_of(batch))


class HasLosses(Protocol):
    """What a run of our side says: the loss of every step, and the tokens of every row, by row number."""

    losses: list[float]
    tokens: dict[int, dict[str, list[int]]]


def compare_losses(run: Callable[[Plan, Any], HasLosses], plan: Plan, theirs: dict[str, Any]) -> dict[str, float]:
    """Run our side of every setting; the worst relative difference of its losses to TRL's.

    Raises:
        ValueError: if both sides were not trained on the same tokens, or took different numbers of steps.
    """
    worst = {}
    for name, settings in plan["settings"].items():
        ours = run(plan, settings)
        if [tokens for _, tokens in sorted(ours.tokens.items())] != theirs["tokens"]:
            raise ValueError("both sides must be trained on the same tokens, and were not")
        if len(theirs[name]) != len(ours.losses):
            raise ValueError(
                f"{name}: TRL took {len(theirs[name])} steps, ours {len(ours.losses)}; they must be as many"
            )
        pairs = list(zip(theirs[name], ours.losses, strict=True))
        worst[name] = max(abs(mine - other) / max(abs(other), 1e-8) for other, mine in pairs)
        first, last = pairs[0][0], pairs[-1][0]
        print(f"{name:>15}: {first:.6f} -> {last:.6f} in {len(pairs)} steps, worst relative {worst[name]:.1e}")
    return worst


def fit(
    module: LightningModule,
    rows: str,
    plan: Plan,
    watch: Callback,
    kind: type[PreferenceDataModule | SFTDataModule] = PreferenceDataModule,
) -> Trainer:
    """Train as TRL's side does: rows in order, every step logged. Our token budget changes no number."""
    data = kind(
        rows,
        tokenizer=plan["model"],
        batch_size=plan["batch_size"],
        max_length=plan["max_length"],
        token_budget=plan["token_budget"],
        shuffle_buffer=0,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=plan["steps"],
        gradient_clip_val=plan["max_grad_norm"],
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
        default_root_dir=plan["scratch"],
    )
    trainer.fit(module, datamodule=data)
    return trainer


def parser(doc: str, is_start_embedded: bool) -> argparse.ArgumentParser:
    """The command line that all comparisons have; model and rows may be left out where there are embedded ones."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--trl-python", required=True, help="interpreter of an environment with TRL 1.16")
    options.add_argument("--model", required=not is_start_embedded, help="folder of a small Llama and its tokenizer")
    options.add_argument(
        "--data", type=Path, required=not is_start_embedded, help="rows in Anthropic's HH form, .jsonl or .jsonl.gz"
    )
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--golden", type=Path, help="also keep TRL's numbers here, for the tests")
    return options


def run_both(
    script: Path,
    options: argparse.Namespace,
    make_plan: Callable[[Path], Plan],
    compare: Callable[[Plan, dict[str, Any]], dict[str, float]],
) -> None:
    """Make the start, let TRL's ``script`` and our side train from it, and exit with an error if they differ."""
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    plan = make_plan(out)
    (out / "plan.json").write_text(json.dumps(plan))
    subprocess.run([options.trl_python, str(script), str(out / "plan.json")], check=True)
    theirs = json.loads((out / "trl.json").read_text())
    if options.golden:
        golden = {
            "trl": theirs["version"],
            "numbers": plan["numbers"],
            "runs": {name: theirs[name] for name in plan["settings"]},
        }
        options.golden.write_text(json.dumps(golden) + "\n")
    worst = compare(plan, theirs)
    (out / "parity.json").write_text(json.dumps(worst))
    if bad := [name for name, difference in worst.items() if not difference <= TOLERANCE]:
        sys.exit(f"more than {TOLERANCE:.0e} apart: {', '.join(bad)}")
