"""Train with TRL's DPOTrainer and with DPOModule from the same start, and compare the loss of every step.

Same model, same adapter (its B matrices not zero, so that the reference is a frozen copy of it), same rows in the same
order, same optimizer; each side reads the rows by its own tokenization. TRL runs in its own environment:

    python benchmarks/parity/dpo.py --trl-python /path/to/trl/bin/python --model DIR --data hh.jsonl.gz --out OUT

Exits with an error if a loss differs by more than 1e-4 relative at any step. ``OUT`` keeps the curves.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from beside_trl import Plan, compare_losses, fit, parser, rows_that_fit, run_both, tokens_of, write_adapter, write_rows
from lightning.pytorch import Callback, LightningModule, Trainer

import lit_rlhf.losses
from lit_rlhf import BackboneConfig, DPOModule
from lit_rlhf.losses.terms import LossTerm
from lit_rlhf.schedules import WarmupDecay
from lit_rlhf.types import PreferenceBatch

SETTINGS: dict[str, dict[str, Any]] = {
    "sigmoid": {"losses": ["sigmoid"], "weights": [1.0], "beta": 0.1},
    "ipo": {"losses": ["ipo"], "weights": [1.0], "beta": 0.1},
    "hinge": {"losses": ["hinge"], "weights": [1.0], "beta": 0.1},
    "apo_zero": {"losses": ["apo_zero"], "weights": [1.0], "beta": 0.1},
    "mpo": {"losses": ["sigmoid", "bco_pair", "sft"], "weights": [0.8, 0.2, 1.0], "beta": 0.1},
}
# The gradient's norm crosses 7 from step to step, so that clipping counts.
NUMBERS: dict[str, Any] = {
    "steps": 20,
    "batch_size": 4,
    "max_length": 512,
    "token_budget": 1024,
    "lr": 1e-3,
    "max_grad_norm": 7.0,
}


class Losses(Callback):
    """Collects the loss of every step, and the tokens of every row, by row number."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.tokens: dict[int, dict[str, list[int]]] = {}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, torch.Tensor],
        batch: PreferenceBatch,
        batch_idx: int,
    ) -> None:
        """Keep what one step came to."""
        self.losses.append(outputs["loss"].item())
        self.tokens.update(tokens_of(batch))


def run(plan: Plan, settings: dict[str, Any]) -> Losses:
    """Train with one loss, the way TRL's side does."""
    parts = zip(settings["losses"], settings["weights"], strict=True)
    module = DPOModule(
        BackboneConfig(plan["model"], adapter=plan["adapter"], dtype="float32"),
        losses=[LossTerm(getattr(lit_rlhf.losses, f"{name}_loss"), weight) for name, weight in parts],
        beta=settings["beta"],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=plan["lr"], weight_decay=0.0),
        lr_scheduler=lambda optimizer: WarmupDecay(optimizer, decay="constant"),
    )
    fit(module, plan["rows"], plan, watch := Losses())
    return watch


def make_plan(folder: Path, model: str, data: Path, numbers: dict[str, Any]) -> Plan:
    """Write rows and adapter into a folder; what both sides are told."""
    rows = rows_that_fit(data, model, numbers["max_length"], numbers["steps"] * numbers["batch_size"])
    write_adapter(model, folder / "adapter")
    return {
        **numbers,
        "numbers": numbers,
        "settings": SETTINGS,
        "model": str(Path(model).resolve()),
        "rows": write_rows(rows, folder / "rows.jsonl"),
        "adapter": str(folder / "adapter"),
        "scratch": str(folder / "scratch"),
    }


def main() -> None:
    """Prepare the start, run both sides, compare."""
    options = parser(__doc__, is_start_embedded=False).parse_args()
    script = Path(__file__).with_name("dpo_trl.py")
    run_both(
        script, options, lambda out: make_plan(out, options.model, options.data, NUMBERS), partial(compare_losses, run)
    )


if __name__ == "__main__":
    main()
