"""Train with TRL's SFTTrainer and with SFTModule from the same start, and compare the loss of every step.

Same model, same adapter (its B matrices not zero), same rows in the same order, same optimizer; each side reads the
rows by its own tokenization. TRL runs in its own environment:

    python benchmarks/parity/sft.py --trl-python /path/to/trl/bin/python --model DIR --data hh.jsonl.gz --out OUT

Exits with an error if a loss differs by more than 1e-4 relative at any step. ``OUT`` keeps the curves.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from beside_trl import Plan, compare_losses, fit, parser, rows_that_fit, run_both, write_adapter, write_rows
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import SFTDataModule
from lit_rlhf import BackboneConfig, SFTModule
from lit_rlhf.schedules import WarmupDecay
from lit_rlhf.types import InstructionBatch

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"label_smoothing": 0.0, "accumulated": 1},
    "accumulated": {"label_smoothing": 0.0, "accumulated": 4},  # by TRL; ours takes the whole step at once
    "label_smoothing": {"label_smoothing": 0.1, "accumulated": 1},
}
# The gradient's norm crosses 2 from step to step, so that clipping counts.
NUMBERS: dict[str, Any] = {
    "steps": 20,
    "batch_size": 4,
    "max_length": 512,
    "token_budget": 1024,
    "lr": 1e-3,
    "max_grad_norm": 2.0,
}


class Course(Callback):
    """Collects the loss of every step, and the tokens of every row with what is trained of them, by row number."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.tokens: dict[int, dict[str, list[int]]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: InstructionBatch, batch_idx: int
    ) -> None:
        """Keep what one step came to."""
        self.losses.append(outputs["loss"].item())
        for texts in batch.micro_batches:
            forest = texts.forest
            labels = torch.full_like(forest.tokens, -100)
            labels[forest.targets] = forest.tokens[forest.targets]
            columns = [column.split(forest.lengths) for column in (forest.tokens, labels)]
            for row, tokens, learnt in zip(texts.rows, *columns, strict=True):
                self.tokens[int(row.rpartition(":")[2])] = {"input_ids": tokens.tolist(), "labels": learnt.tolist()}


def run(plan: Plan, settings: dict[str, Any]) -> Course:
    """Train under one setting, the way TRL's side does."""
    module = SFTModule(
        BackboneConfig(plan["model"], adapter=plan["adapter"], dtype="float32"),
        label_smoothing=settings["label_smoothing"],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=plan["lr"], weight_decay=0.0),
        lr_scheduler=lambda optimizer: WarmupDecay(optimizer, decay="constant"),
    )
    fit(module, plan["rows"], plan, watch := Course(), SFTDataModule)
    return watch


def make_plan(folder: Path, model: str, data: Path, numbers: dict[str, Any]) -> Plan:
    """Write rows and adapter into a folder; what both sides are told."""
    rows = rows_that_fit(data, model, numbers["max_length"], numbers["steps"] * numbers["batch_size"])
    texts = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    write_adapter(model, folder / "adapter")
    return {
        **numbers,
        "numbers": numbers,
        "settings": SETTINGS,
        "model": str(Path(model).resolve()),
        "rows": write_rows(texts, folder / "rows.jsonl"),
        "adapter": str(folder / "adapter"),
        "scratch": str(folder / "scratch"),
    }


def main() -> None:
    """Prepare the start, run both sides, compare."""
    options = parser(__doc__, is_start_embedded=False).parse_args()
    script = Path(__file__).with_name("sft_trl.py")
    run_both(
        script, options, lambda out: make_plan(out, options.model, options.data, NUMBERS), partial(compare_losses, run)
    )


if __name__ == "__main__":
    main()
