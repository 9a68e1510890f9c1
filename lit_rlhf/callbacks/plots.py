"""Curves of a run as pictures, drawn from ``metrics.csv``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.callbacks.row_plots import draw_rows
from lit_rlhf.reports.curves import HELD_OUT, WITH_ROLLOUTS, curves, path_against_kl
from lit_rlhf.reports.metrics_table import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

_COLOURS = {
    "train": "#9db4c9",
    "rollout": "#5b7fa6",
    "score": "#7a5c99",
    "update": "#e0a030",
    "val": "#c8553d",
    "chosen": "#2a7f62",
    "rejected": "#c8553d",
}


class Plots(Callback):
    """Draws a PNG per metric into ``plots/`` at the end of training, and one with all of them."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if trainer.is_global_zero:
            draw(Path(trainer.default_root_dir))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw what there is."""
        if trainer.is_global_zero and trainer.global_step:
            draw(Path(trainer.default_root_dir))


def draw(folder: Path) -> list[Path]:
    """Draw the curves of a run.

    Args:
        folder: of the run; the pictures go to its ``plots/``.

    Returns:
        The pictures.
    """
    panels = curves(read_metrics(folder))
    if not panels:
        return []
    from matplotlib.figure import Figure

    (folder / "plots").mkdir(exist_ok=True)
    pictures = []
    for name, lines in panels.items():
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        _panel(figure.subplots(), name, lines)
        pictures.append(folder / "plots" / f"{name.replace('/', '_')}.png")
        figure.savefig(pictures[-1], dpi=120)
    if path := score_against_kl(read_metrics(folder)):
        pictures.append(folder / "plots" / "score_against_kl.png")
        path.savefig(pictures[-1], dpi=120)
    pictures += draw_rows(folder)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        _panel(axis, name, lines)
    pictures.append(folder / "plots" / "all.png")
    figure.savefig(pictures[-1], dpi=120)
    return pictures


def score_against_kl(rows: list[dict[str, float]]) -> Figure | None:
    """The path of a run with rollouts: what score it has, at what distance from the reference.

    Points are coloured by when they were: a path that goes on to the right without going up pays for nothing. Where
    several rewards make up the score, each has a panel of its own.

    Args:
        rows: as :func:`lit_rlhf.reports.metrics_table.read_metrics` gives them.

    Returns:
        The picture; None where fewer than two points are known.
    """
    metrics = {metric for row in rows for metric in row}
    parts = sorted({metric.removeprefix("rollout/") for metric in metrics if metric.startswith("rollout/rewards/")})
    names = ["score", *(parts if len(parts) > 1 else [])]
    names = [name for name in names if max(len(path_against_kl(rows, split, name)) for split in WITH_ROLLOUTS) > 1]
    if not names:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(names) + 1.4, 4.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        points = _against_kl(axis, rows, name)
    figure.colorbar(points, ax=axes, label="step")
    return figure


def _against_kl(axis: Axes, rows: list[dict[str, float]], name: str) -> PathCollection:
    paths = {split: path for split in WITH_ROLLOUTS if (path := path_against_kl(rows, split, name))}
    steps = [step for path in paths.values() for step, _, _ in path]
    for split, path in paths.items():
        when, kl, values = zip(*path, strict=True)
        look = {"s": 46, "zorder": 3, "edgecolors": "black"} if split == "val" else {"s": 10, "alpha": 0.6}
        axis.plot(kl, values, color="#888888", linewidth=1.2 if split == "val" else 0.4, zorder=1)
        points = axis.scatter(kl, values, c=when, vmin=min(steps), vmax=max(steps), label=split, **look)
    axis.set_title(name, loc="left", fontsize=10)
    axis.set_xlabel("KL from the reference (nats per response)", fontsize=8)
    _tidy(axis)
    return points


def _panel(axis: Axes, name: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    for line, points in lines.items():
        split, _, side = line.partition(" ")
        steps, values = zip(*points, strict=True)
        held_out = split in HELD_OUT
        axis.plot(
            steps,
            values,
            label=line,
            color=_COLOURS.get(side or split),
            linewidth=2 if held_out else 1.2,
            marker="o" if held_out else None,
            markersize=4,
            alpha=1.0 if held_out else 0.75,
        )
    axis.set_title(name, loc="left", fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
