"""Rewards of single responses as pictures: how they spread before and after, and whether length earns them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlhf.reports.drawings import LENGTHS, correlation, numbers, points_by_length
from lit_rlhf.reports.left import Run, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"score": "#5b7fa6", "chosen": "#2a7f62", "rejected": "#c8553d"}
_NUM_BINS = 30


def draw_rows(folder: Path) -> list[Path]:
    """Draw ``rewards_before_after.png`` and ``reward_by_length.png``, as far as there are rows.

    Args:
        folder: of the run; the pictures go to its ``plots/``.

    Returns:
        The pictures.
    """
    run = read_run(folder)
    figures = {"rewards_before_after": _spreads(run), "reward_by_length": _by_length(run)}
    pictures = []
    for name, figure in figures.items():
        if figure is not None:
            pictures.append(folder / "plots" / f"{name}.png")
            figure.savefig(pictures[-1], dpi=120)
    return pictures


def _spreads(run: Run) -> Figure | None:
    """Before above after, on one axis."""
    moments = {"before": run.first_rows, "after": run.last_rows}
    values = {moment: {name: numbers(rows, name) for name in LENGTHS} for moment, rows in moments.items()}
    everything = [value for found in values.values() for some in found.values() for value in some]
    if not everything:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.6), layout="constrained")
    bounds = (min(everything), max(everything) + 1e-9)
    for axis, (moment, found) in zip(figure.subplots(2, 1, sharex=True), values.items(), strict=True):
        for name, some in filter(lambda item: item[1], found.items()):
            axis.hist(some, bins=_NUM_BINS, range=bounds, density=True, alpha=0.5, label=name, color=_COLOURS[name])
        axis.set_title(f"rewards {moment}", loc="left", fontsize=10)
        _tidy(axis)
    return figure


def _by_length(run: Run) -> Figure | None:
    points = {name: some for name, some in points_by_length(run).items() if some}
    if not points:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, some in points.items():
        lengths, rewards = zip(*some, strict=True)
        axis.scatter(lengths, rewards, s=8, alpha=0.5, label=name, color=_COLOURS[name])
    together = correlation([point for some in points.values() for point in some])
    said = "" if together is None else f"    correlation {together:+.2f}"
    axis.set_title(f"reward by length{said}", loc="left", fontsize=10)
    axis.set_xlabel("tokens of the response", fontsize=8)
    _tidy(axis)
    return figure


def _tidy(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
