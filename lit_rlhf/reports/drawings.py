"""The drawings in the report of a run; one without data is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lit_rlhf.reports.axes import written
from lit_rlhf.reports.charts import line_chart, point_chart, reliability_chart, share_chart, spread_chart
from lit_rlhf.reports.curves import WITH_ROLLOUTS, Point, curves, path_against_kl
from lit_rlhf.reports.left import Row, Run
from lit_rlhf.reports.markup import Html, el, join, table
from lit_rlhf.reports.words import healthy

_NUM_CURVES = 6
"""Curves that are seen at once; the others are a click away."""

LENGTHS = {"score": "length", "chosen": "chosen_length", "rejected": "rejected_length"}
"""Columns of held-out rows that are scores or implicit rewards, and those with the tokens of the same response."""


def curve_grid(run: Run) -> Html | None:
    """Every metric that changes."""
    panels = curves(run.metrics)
    words = healthy(panels)
    figures = [line_chart(name, lines, words.get(name, "")) for name, lines in panels.items()]
    drawn = [figure for figure in figures if figure is not None]
    rest = drawn[_NUM_CURVES:]
    more = el("details", el("summary", f"{len(rest)} more curves"), grid(rest)) if rest else None
    return join(grid(drawn[:_NUM_CURVES]), more) if drawn else None


def spreads(run: Run) -> Html | None:
    """Rewards or scores of single rows, before and after."""
    before, after = run.first_rows, run.last_rows
    moments = {"before": before, "after": after} if before != after else {"after": after}
    if numbers(after, "score"):
        return grid([spread_chart("score", {name: numbers(rows, "score") for name, rows in moments.items()})])
    both = ("chosen", "rejected")
    within = [value for rows in moments.values() for name in both for value in numbers(rows, name)]
    return grid(
        spread_chart(title, {name: numbers(rows, name) for name in both}, within=within, label="reward")
        for title, rows in moments.items()
    )


def score_paths(run: Run) -> Html | None:
    """Score at its distance from the reference; each of several rewards has a drawing of its own."""
    metrics = {metric for row in run.metrics for metric in row}
    parts = sorted(metric.removeprefix("rollout/") for metric in metrics if metric.startswith("rollout/rewards/"))
    return grid(
        point_chart(
            name,
            {
                split: [(kl, value) for _, kl, value in path_against_kl(run.metrics, split, name)]
                for split in WITH_ROLLOUTS
            },
            ("KL from the reference, nats per response", name),
            is_path=True,
        )
        for name in ("score", *(parts if len(parts) > 1 else []))
    )


def calibration(run: Run) -> Html | None:
    """How often a reward model is right where it is that sure."""
    return grid([reliability_chart("reliability", run.facts.get("reliability") or [])])


def length_against_reward(run: Run) -> Html | None:
    """Whether responses are rewarded for being long."""
    points = points_by_length(run)
    together = correlation([point for some in points.values() for point in some])
    said = "reward" if together is None else f"reward; correlation {together:+.2f}"
    return grid([point_chart("reward by length", points, ("tokens of the response", said))])


def points_by_length(run: Run) -> dict[str, list[Point]]:
    """(tokens, reward) of the last responses: of all, or of chosen and rejected ones."""
    return {
        name: [(row[length], row[name]) for row in run.last_rows if _is_number(row, length) and _is_number(row, name)]
        for name, length in LENGTHS.items()
    }


def phases(run: Run) -> Html | None:
    """Where the time went, and how fast it was."""
    metrics = sorted({metric for row in run.metrics for metric in row})
    spent = {
        name.removeprefix("time/"): sum(numbers(run.metrics, name)) for name in metrics if name.startswith("time/")
    }
    speeds = {name: sorted(numbers(run.metrics, name)) for name in metrics if name.endswith("/tokens_per_second")}
    rows: list[list[object]] = [
        [name.partition("/")[0], written(some[len(some) // 2]), written(some[0]), written(some[-1])]
        for name, some in speeds.items()
        if some
    ]
    head: list[object] = ["tokens per second", "median", "least", "most"]
    rates = table(head, rows, "Throughput of one rank") if rows else None
    bar = share_chart("time by phase", spent, "seconds")
    return join(bar, rates) if bar or rates else None


def grid(figures: Iterable[Html | None]) -> Html | None:
    """Figures side by side, as many as there is room for; None without any."""
    drawn = [figure for figure in figures if figure is not None]
    return el("div", *drawn, class_="grid") if drawn else None


def numbers(rows: Iterable[Row], name: str) -> list[float]:
    """The finite values of a column."""
    return [float(row[name]) for row in rows if _is_number(row, name)]


def correlation(points: list[tuple[float, float]]) -> float | None:
    """Pearson correlation; None where one of the two does not change.

    Example:
        >>> round(correlation([(1, 1), (2, 3), (3, 5)]), 6)
        1.0
    """
    if len(points) < 2:
        return None
    across, up = ([value - math.fsum(column) / len(column) for value in column] for column in zip(*points, strict=True))
    size = math.sqrt(math.fsum(x * x for x in across)) * math.sqrt(math.fsum(y * y for y in up))
    return math.fsum(x * y for x, y in zip(across, up, strict=True)) / size if size > 0 else None


def _is_number(row: Row, name: str) -> bool:
    value: Any = row.get(name)
    return isinstance(value, int | float) and math.isfinite(value)
