"""Curves of a run as pictures, drawn from ``metrics.csv``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.callbacks.metrics_file import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLAIN = ("epoch", "step")
_FIRST = (
    *("loss", "rewards/accuracy", "rewards/margin", "sampled_score", "sampled_win_rate", "rewards", "kl"),
    *("scores/accuracy", "scores/margin", "scores"),
)
"""Panels that come before the others."""

_COLOURS = {"train": "#9db4c9", "val": "#c8553d", "chosen": "#2a7f62", "rejected": "#c8553d"}


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


def curves(rows: list[dict[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Points (step, value) by panel and line: ``train/x`` and ``val/x`` share panel ``x``.

    ``rewards/chosen`` and ``rewards/rejected`` share one, too, as do the buckets of ``x_by_length``; ``x/hh``, the part
    of ``x`` from source ``hh``, is a line in the panel of ``x``. Panels in which nothing changes are left out.
    """
    metrics = {metric for row in rows for metric in row}
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for metric, value in row.items():
            if metric in _PLAIN:
                continue
            split, _, name = metric.partition("/")
            panel, _, side = name.rpartition("/")
            whole = [known for known in metrics if metric.startswith(f"{known}/")]
            if whole:
                panel, line = whole[0].partition("/")[2], f"{split} {metric[len(whole[0]) + 1 :]}"
            elif side in ("chosen", "rejected") or panel.endswith("_by_length"):
                line = f"{split} {side}"
            else:
                panel, line = name or metric, split
            panels.setdefault(panel, {}).setdefault(line, []).append((row["step"], value))
    names = (*(name for name in _FIRST if name in panels), *sorted(panels.keys() - {*_FIRST}))
    return {name: panels[name] for name in names if any(_moves(line) for line in panels[name].values())}


def _moves(line: list[tuple[float, float]]) -> bool:
    return len({value for _, value in line}) > 1


def _panel(axis: Axes, name: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    for line, points in lines.items():
        split, _, side = line.partition(" ")
        steps, values = zip(*points, strict=True)
        held_out = split != "train"
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
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
