"""``metrics.csv``: one row per step, every metric a column, readable while the run goes on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lit_rlhf.reports.metrics_table import FILE, read_metrics


class MetricsFile(Logger):
    """Logs into ``metrics.csv`` of a folder. Unlike Lightning's CSVLogger it goes on in the file of a resumed run.

    Rows of the file from the first step that is logged on are replaced: a resumed run does those steps again.

    Args:
        folder: the folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._rows: list[dict[str, Any]] | None = None
        self._columns: list[str] = ["step"]

    @property
    def name(self) -> str:
        """Nothing: the folder is the run's own."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder is the run's own."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Write metrics into the row of a step.

        Args:
            metrics: name and value of each.
            step: optimizer steps done so far.
        """
        at = step or 0
        row: dict[str, Any] = {"step": at, **{name: float(value) for name, value in metrics.items()}}
        file = self._folder / FILE
        if self._rows is None:
            self._rows = _rows_before(file, at)
            self._columns = list(dict.fromkeys(["step", *(name for old in self._rows for name in old)]))
            appendable = False
        else:
            appendable = bool(self._rows) and row["step"] > self._rows[-1]["step"]
        appendable = appendable and set(row) <= set(self._columns)
        self._columns += [name for name in row if name not in self._columns]
        if self._rows and self._rows[-1]["step"] == row["step"]:
            self._rows[-1].update(row)
        else:
            self._rows.append(row)
        self._write([row] if appendable else self._rows, append=appendable)

    def _write(self, rows: list[dict[str, Any]], append: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / FILE).open("a" if append else "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            if not append:
                writer.writeheader()
            writer.writerows(rows)


def _rows_before(file: Path, step: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [dict(row) for row in read_metrics(file.parent) if row["step"] < step]
    return [{**row, "step": int(row["step"])} for row in rows]
