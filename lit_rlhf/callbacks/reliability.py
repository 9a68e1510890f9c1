"""The reliability plot: how often a reward model is right where it is that sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, Trainer

from lit_rlhf.metrics.calibration import CALIBRATION_METRICS, ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@runtime_checkable
class Calibrated(Protocol):
    """A module that keeps the bins of its last evaluation, such as RewardModule."""

    reliability: list[ReliabilityBin]


class ReliabilityPlot(Callback):
    """Draws ``plots/reliability.png`` at the end of ``fit``, ``validate`` and ``test``.

    Other modules than :class:`Calibrated` ones are passed over.
    """

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the last validation."""
        self._draw(trainer, pl_module, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw, unless more validations are to come."""
        if trainer.state.fn == "validate":
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        wanted = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if wanted and isinstance(pl_module, Calibrated) and pl_module.reliability:
            found = {
                name: float(trainer.callback_metrics[f"{stage}/{name}"])
                for name in CALIBRATION_METRICS
                if f"{stage}/{name}" in trainer.callback_metrics
            }
            draw(Path(trainer.default_root_dir), pl_module.reliability, found)


def draw(folder: Path, bins: Sequence[ReliabilityBin], metrics: Mapping[str, float]) -> Path:
    """Draw confidence against accuracy, and below it how many pairs each bin holds.

    Args:
        folder: of the run; the picture goes to its ``plots/``.
        bins: those with pairs, at least one.
        metrics: ``scores/ece`` and ``scores/brier``, for the title.

    Returns:
        The picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_accuracy(above, bins)
    below.bar(
        [row.low for row in bins],
        [row.num_pairs for row in bins],
        [row.high - row.low for row in bins],
        align="edge",
        color="#9db4c9",
        edgecolor="white",
    )
    below.set_ylabel("pairs", fontsize=9)
    below.set_xlabel("confidence: probability of the response that scores higher", fontsize=9)
    names = {"scores/ece": "ECE", "scores/brier": "Brier score"}
    words = [f"{names[name]} {value:.3f}" for name, value in metrics.items()]
    total = sum(row.num_pairs for row in bins)
    above.set_title("    ".join([f"reliability over {total:,} pairs", *words]), loc="left", fontsize=10)
    for axis in (above, below):
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    picture = folder / "plots" / "reliability.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    return picture


def _draw_accuracy(axis: Axes, bins: Sequence[ReliabilityBin]) -> None:
    """Points at the mean confidence of each bin, with twice the standard error that its number of pairs leaves."""
    confidence = [row.confidence for row in bins]
    accuracy = [row.accuracy for row in bins]
    errors = [2 * (row.accuracy * (1 - row.accuracy) / row.num_pairs) ** 0.5 for row in bins]
    axis.plot([0.5, 1], [0.5, 1], color="#888888", linestyle="--", linewidth=1, label="as sure as right")
    axis.errorbar(
        confidence,
        accuracy,
        errors,
        color="#2a7f62",
        marker="o",
        markersize=5,
        capsize=2,
        label="accuracy, two standard errors",
    )
    axis.set_xlim(0.5, 1)
    axis.set_ylim(min(0.45, *accuracy) - 0.05, 1.02)
    axis.set_ylabel("share ordered rightly", fontsize=9)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
