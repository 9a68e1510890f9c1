"""Curves of a run: which metrics share a panel, and in what order the panels stand."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lit_rlhf.reports.axes import is_drawable
from lit_rlhf.reports.metrics_table import MetricRows

Point = tuple[float, float]
Lines = dict[str, list[Point]]
"""Points (step, value) by the name of their line."""

_PLAIN = ("epoch", "step")
FIRST = (
    *("score", "score_parts", "loss", "rewards/accuracy", "rewards/margin", "sampled_score", "sampled_win_rate"),
    *("rewards", "kl", "scores/accuracy", "scores/margin", "scores", "token_accuracy"),
    *("entropy", "length", "finished", "explained_variance"),
)
"""Panels that come before the others."""

_SIDES = ("low", "high")
"""``x_low`` and ``x_high`` are lines of the panel ``x``."""

HELD_OUT = ("val", "test")
WITH_ROLLOUTS = ("rollout", "val")


def curves(rows: MetricRows) -> dict[str, Lines]:
    """Points (step, value) by panel and line: ``train/x`` and ``val/x`` share panel ``x``.

    ``rewards/chosen`` and ``rewards/rejected`` share one, too, as do the buckets of ``x_by_length``, ``x_low`` and
    ``x_high``, all of ``time/``, and the ``rewards/`` that a score is the sum of; ``x/hh``, the part of ``x`` from
    source ``hh``, is a line in the panel of ``x``. Panels in which nothing changes are left out.

    Args:
        rows: as :func:`lit_rlhf.reports.metrics_table.read_metrics` gives them.
    """
    metrics = {metric for row in rows for metric in row} - {*_PLAIN}
    places = {metric: _place(metric, metrics) for metric in metrics}
    panels: dict[str, Lines] = {}
    for row in rows:
        for metric in row.keys() & places:
            panel, line = places[metric]
            panels.setdefault(panel, {}).setdefault(line, []).append((row["step"], row[metric]))
    return {
        name: dict(sorted(panels[name].items()))
        for name in ordered(panels)
        if any(_moves(line) for line in panels[name].values())
    }


def ordered(names: Iterable[str]) -> list[str]:
    """Names of panels or metrics: what says most first, what became of rows last.

    Args:
        names: in any order, each once.
    """
    known = set(names)
    rest = sorted(known - {*FIRST}, key=lambda name: (name.startswith("data/"), name))
    return [*(name for name in FIRST if name in known), *rest]


def path_against_kl(rows: MetricRows, split: str, name: str) -> list[tuple[float, float, float]]:
    """(step, KL, value) of the rows that have them.

    Args:
        rows: of a run with rollouts.
        split: ``rollout`` or ``val``.
        name: of the value, such as ``score``.
    """
    kl, value = f"{split}/kl", f"{split}/{name}"
    return [(row["step"], row[kl], row[value]) for row in rows if kl in row and value in row]


def thinned(points: list[Point], most: int = 160) -> list[Point]:
    """So few points that a page stays small, the least and the greatest of every stretch among them.

    Args:
        points: in order.
        most: that are left.

    Example:
        >>> thinned([(0, 0), (1, 9), (2, 1), (3, 1), (4, -5), (5, 1)], most=4)
        [(0, 0), (1, 9), (4, -5), (5, 1)]
    """
    known = [point for point in points if is_drawable(point[1])]
    if len(known) <= most:
        return known
    size = math.ceil(2 * len(known) / most)
    kept = {known[0], known[-1]}
    for at in range(0, len(known), size):
        stretch = sorted(known[at : at + size], key=lambda point: point[1])
        kept |= {stretch[0], stretch[-1]}
    return sorted(kept)


def _place(metric: str, metrics: set[str]) -> tuple[str, str]:
    """Panel and line of a metric."""
    split, _, name = metric.partition("/")
    if split == "time":
        return "seconds", f"time {name}"
    if f"rollout/{name}" in metrics and name.startswith("rewards/"):
        return "score_parts", f"{split} {name.removeprefix('rewards/')}"
    if whole := [known for known in metrics if metric.startswith(f"{known}/")]:
        return whole[0].partition("/")[2], f"{split} {metric[len(whole[0]) + 1 :]}"
    panel, _, side = name.rpartition("/")
    if side in ("chosen", "rejected") or panel.endswith("_by_length"):
        return panel, f"{split} {side}"
    stem, _, side = name.rpartition("_")
    if side in _SIDES:
        return stem, f"{split} {side}"
    return name or metric, split


def _moves(line: list[Point]) -> bool:
    return len({value for _, value in line}) > 1
