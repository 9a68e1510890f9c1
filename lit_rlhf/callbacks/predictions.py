"""``predictions.jsonl``: what ``predict`` found out about every row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class PredictionsFile(Callback):
    """Writes one JSON line per row, in the order of the data, as ``predict`` goes.

    Several processes write a part each, which the first one puts together at the end.

    Args:
        file: where to; None = ``predictions.jsonl`` in the folder of the run.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file = file
        self._count = 0

    def _target(self, trainer: Trainer) -> Path:
        return Path(self.file or Path(trainer.default_root_dir) / "predictions.jsonl")

    def _part(self, trainer: Trainer, rank: int) -> Path:
        target = self._target(trainer)
        return target if trainer.world_size == 1 else target.with_name(f"{target.name}.{rank}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an empty file."""
        part = self._part(trainer, trainer.global_rank)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("", encoding="utf-8")
        self._count = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append what ``predict_step`` returned: one dict per row."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in outputs]
        with self._part(trainer, trainer.global_rank).open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self._count += len(lines)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the parts together and say where they are."""
        target = self._target(trainer)
        if trainer.world_size > 1:
            dist.barrier()
            if trainer.is_global_zero:
                parts = [self._part(trainer, rank) for rank in range(trainer.world_size)]
                target.write_text("".join(part.read_text(encoding="utf-8") for part in parts), encoding="utf-8")
                for part in parts:
                    part.unlink()
        rank_zero_info(f"{self._count} rows{' of this process' if trainer.world_size > 1 else ''}: {target}")
