"""``metrics.csv`` of a run, read so that a file that was cut short or damaged still tells what it can."""

from __future__ import annotations

import csv
import io
from pathlib import Path

FILE = "metrics.csv"

MetricRows = list[dict[str, float]]
"""Metrics by name, and the step, one row after another."""


def read_metrics(folder: str | Path, problems: list[str] | None = None) -> MetricRows:
    """The rows of a folder's ``metrics.csv`` in order, empty cells left out; empty if there is no file.

    A row that goes back to an earlier step takes the place of all from there on: a resumed run does them again. A last
    line without its end, and rows and cells that are no numbers, are left out.

    Args:
        folder: of the run.
        problems: what is left out is told here.
    """
    file, told = Path(folder) / FILE, [] if problems is None else problems
    if not file.is_file():
        return []
    whole, _, rest = file.read_bytes().decode("utf-8", "replace").replace("\0", "").rpartition("\n")
    if rest:
        told.append(f"{FILE}: its last line is cut short, and left out")
    rows: MetricRows = []
    num_damaged = 0
    for cells in csv.DictReader(io.StringIO(whole, newline="")):
        row = _numbers(cells)
        num_damaged += len(row) < sum(map(bool, cells.values()))
        if "step" not in row:
            continue
        while rows and rows[-1]["step"] > row["step"]:
            rows.pop()
        if rows and rows[-1]["step"] == row["step"]:
            rows[-1].update(row)
        else:
            rows.append(row)
    if num_damaged:
        told.append(f"{FILE}: {num_damaged} rows hold something that is no number, which is left out")
    return rows


def _numbers(cells: dict[str, str]) -> dict[str, float]:
    """The cells that are numbers, and the name of whose column is known."""
    row = {}
    for name, cell in cells.items():
        try:
            row[name] = float(cell)
        except (TypeError, ValueError):  # None where a row is too short, a list where it is too long
            continue
    return row
