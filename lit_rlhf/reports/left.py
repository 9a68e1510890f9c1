"""What a run left in its folder, as far as it can be read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_rlhf.reports.metrics_table import FILE as METRICS
from lit_rlhf.reports.metrics_table import MetricRows, read_metrics

Row = dict[str, Any]
FACTS, CONFIG, SAMPLES, HELD_OUT = "run.json", "config.yaml", "samples.jsonl", "heldout.jsonl"


@dataclass
class Run:
    """What a run left.

    Args:
        folder: where it lies.
        facts: of ``run.json``: how it ended, what warned, which versions it had.
        config: of ``config.yaml``.
        metrics: of ``metrics.csv``.
        samples: of ``samples.jsonl``: responses to prompts.
        held_out: of ``heldout.jsonl``: rewards or scores of single rows.
        problems: what could not be read, in words.
    """

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: MetricRows = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    held_out: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.resolve().name

    @property
    def algorithm(self) -> str:
        """``DPO`` for a DPOModule; ``run`` where nothing says."""
        told = self.facts.get("algorithm") or _inside(self.config, "model", "class_path") or "run"
        return str(told).rpartition(".")[2].removesuffix("Module") or "run"

    @property
    def first_samples(self) -> list[Row]:
        """Responses at the first moment that has some."""
        return _moment(self.samples, 0)

    @property
    def last_samples(self) -> list[Row]:
        """Responses at the last moment that has some."""
        return _moment(self.samples, -1)

    @property
    def first_rows(self) -> list[Row]:
        """Scored rows at the first moment that has some: responses drawn, or held-out pairs."""
        return _moment(self.held_out or self.samples, 0)

    @property
    def last_rows(self) -> list[Row]:
        """Scored rows at the last moment that has some."""
        return _moment(self.held_out or self.samples, -1)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of model, data and trainer, flat: ``model.beta`` -> 1.0; class names go by ``model`` itself."""
        return flat({key: self.config.get(key) for key in ("seed_everything", "model", "data", "trainer")})

    def ends(self, metric: str) -> tuple[float, float] | None:
        """First and last value of a metric; None where it has none."""
        values = [row[metric] for row in self.metrics if metric in row]
        return (values[0], values[-1]) if values else None


def read_run(folder: Path) -> Run:
    """Read a folder; what is missing or damaged is said in ``problems`` and is no reason to stop.

    Raises:
        ValueError: if no run has been there.
    """
    if not any((folder / name).is_file() for name in (METRICS, FACTS, CONFIG)):
        raise ValueError(f"{folder} holds neither {METRICS} nor {FACTS} nor {CONFIG}: no run has been there")
    run = Run(folder)
    run.facts = _table_of(folder / FACTS, json.loads, run.problems)
    run.config = _table_of(folder / CONFIG, yaml.safe_load, run.problems)
    run.metrics = read_metrics(folder, run.problems)
    run.samples = _lines(folder / SAMPLES, run.problems)
    run.held_out = _lines(folder / HELD_OUT, run.problems)
    if not run.metrics:
        run.problems.append(f"{METRICS}: there is none, or it has no row: there are no curves")
    return run


def flat(tree: Any, begin: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their dotted keys, without the words that only nest.

    Example:
        >>> flat({"model": {"class_path": "DPO", "init_args": {"beta": 1.0, "lora": {"r": 16}}}})
        {'model': 'DPO', 'model.beta': 1.0, 'model.lora.r': 16}
    """
    if not isinstance(tree, dict):
        return {begin: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        below = begin if key in ("class_path", "init_args") else f"{begin}.{key}" if begin else str(key)
        found |= flat(value, below)
    return found


def _moment(rows: list[Row], which: int) -> list[Row]:
    """The rows of the first (0) or the last (-1) step."""
    steps = sorted({row["step"] for row in rows if isinstance(row.get("step"), int)})
    return [row for row in rows if row.get("step") == steps[which]] if steps else []


def _inside(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _table_of(file: Path, parse: Any, problems: list[str]) -> dict[str, Any]:
    if not file.is_file():
        problems.append(f"{file.name}: there is none")
        return {}
    try:
        found = parse(file.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"{file.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{file.name} holds no table")
        return {}
    return found


def _lines(file: Path, problems: list[str]) -> list[Row]:
    """The rows of a JSON Lines file that are whole."""
    if not file.is_file():
        return []
    rows, num_damaged = [], 0
    for line in file.read_bytes().decode("utf-8", "replace").split("\n"):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = False
        if isinstance(row, dict):
            rows.append(row)
        elif row is not None:
            num_damaged += 1
    if num_damaged:
        problems.append(f"{file.name}: {num_damaged} lines cannot be read, and are left out")
    return rows
