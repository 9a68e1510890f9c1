"""Rewards or scores of single held-out rows, before training and at its end: what a mean hides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

FILE = "heldout.jsonl"

_NUMBERS = {
    "chosen_reward": "chosen",
    "rejected_reward": "rejected",
    "chosen_score": "chosen",
    "rejected_score": "rejected",
    "score": "score",
    "length": "length",
    "chosen_length": "chosen_length",
    "rejected_length": "rejected_length",
}
"""What is kept of a row, and under which name."""

Row = dict[str, Any]


class HeldOutRows(Callback):
    """Keeps what ``validation_step`` returned of single rows, and writes the first and the last to ``heldout.jsonl``.

    Modules whose validation returns no rows are passed over, as are those that return responses, which
    :class:`lit_rlhf.callbacks.rollout_table.RolloutTable` keeps.

    Args:
        num_rows: how many rows of each validation, from its beginning, of the first rank.

    Raises:
        ValueError: if ``num_rows`` is less than 1.
    """

    def __init__(self, num_rows: int = 500) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}; at least 1 row is kept of each validation")
        self.num_rows = num_rows
        self.first: list[Row] = []
        self.last: list[Row] = []

    def state_dict(self) -> dict[str, Any]:
        """The first rows, so that a resumed run compares with the same beginning."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the first rows over from a checkpoint."""
        self.first = state_dict["first"]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of the last validation."""
        self.last = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in the rows of a batch."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero or not isinstance(outputs, list):
            return
        rows = [_kept(row, trainer.global_step) for row in outputs[: self.num_rows - len(self.last)]]
        self.last += [row for row in rows if len(row) > 1]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the first and the last rows."""
        if not self.last or trainer.state.fn != "fit":
            return
        self.first = self.first or self.last
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        rows = self.first if self.first[0]["step"] == self.last[0]["step"] else [*self.first, *self.last]
        file = Path(trainer.default_root_dir) / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _kept(row: Any, step: int) -> Row:
    """The numbers of a row that a report draws, behind the step that they belong to."""
    if not isinstance(row, dict) or "response" in row:
        return {"step": step}
    return {"step": step, **{name: round(row[column], 5) for column, name in _NUMBERS.items() if column in row}}
