"""``tensorboard/``: the metrics of a run as TensorBoard reads them, ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

FOLDER = "tensorboard"


class EventFiles(TensorBoardLogger):
    """Logs into ``tensorboard/`` of a folder. Unlike Lightning's TensorBoardLogger it goes on where a resumed run does.

    What was logged from the first step on that is logged again is hidden: a resumed run does those steps again.

    Args:
        folder: the folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version=FOLDER)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics of a step.

        Args:
            metrics: name and value of each.
            step: optimizer steps done so far.
        """
        self._kwargs.setdefault("purge_step", step or 0)  # read when the first metrics make the file
        super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Flush what was logged, if anything was."""
        if self._experiment is not None:
            self._experiment.flush()


def is_available() -> bool:
    """Whether TensorBoard is installed."""
    return find_spec("tensorboard") is not None
