"""When a run is saved: after validations and every few minutes, or between iterations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lit_rlhf.callbacks.health import is_healthy
from lit_rlhf.callbacks.iterations import is_settled, iterations_done


class StepCheckpoint(ModelCheckpoint):
    """Saves ``step-<n>.ckpt`` and ``last.ckpt`` after validations and at the end of epochs and of the run.

    ``last.ckpt`` is the newest state, and is saved every few minutes in between as well.

    Args:
        dirpath: folder of the checkpoints; None = where Lightning puts them.
        minutes: most time between two checkpoints, to the next whole step; 0 = after every step.
        monitor: name of a logged metric that says which states are best; None = the newest.
        mode: whether the highest or the lowest value is best.
        save_top_k: how many numbered states to keep: 0 none, -1 all; without ``monitor`` nothing else than -1, 0, 1.

    Raises:
        ValueError: if ``minutes`` is negative.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        minutes: float = 5.0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
    ) -> None:
        if minutes < 0:
            raise ValueError(f"minutes is {minutes}; it is at least 0")
        super().__init__(
            dirpath,
            "step-{step}",
            monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.minutes = minutes
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the minutes."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due; a state before a validation is saved after it."""
        is_last, is_late = _is_last(trainer), time.monotonic() - self._saved_at >= 60 * self.minutes
        if trainer.strategy.reduce_boolean_decision(is_last or is_late, all=False) and is_settled(trainer):
            self._save(trainer, is_ranked=is_last and self.monitor is None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was measured with the state that it was measured on."""
        if not trainer.sanity_checking:
            self._save(trainer, is_ranked=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: the last step of the epoch has been saved."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: the last step has been saved, and here an epoch cut short would count as a whole one."""

    def _save(self, trainer: Trainer, is_ranked: bool) -> None:
        if trainer.state.fn != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        candidates = self._monitor_candidates(trainer)
        if is_ranked:
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()


class IterationCheckpoint(ModelCheckpoint):
    """Saves ``iteration-<n>.ckpt`` and ``last.ckpt`` when an iteration has ended, never inside one.

    ModelCheckpoint counts optimizer steps: an iteration takes several, or none where its updates were cut short, and
    whether their number is ever a multiple of what was asked for is luck.

    ``last.ckpt`` is always the newest state. It is saved every so many iterations, after the last one of an epoch or of
    the run, and after each validation, whose results it then holds. ``iteration-<n>.ckpt`` is the newest state in
    which all bands of :class:`lit_rlhf.callbacks.health.HealthBands` held, or with ``monitor`` the best ones.

    Args:
        dirpath: folder of the checkpoints; None = where Lightning puts them.
        every_n_iterations: how often.
        monitor: name of a logged metric that says which states are best; one that begins with ``val`` is looked at
            after each validation, any other one after each saved iteration. None = the newest.
        mode: whether the highest or the lowest value is best.
        save_top_k: how many numbered states to keep: 0 none, -1 all; without ``monitor`` nothing else than -1, 0, 1.

    Raises:
        ValueError: if ``every_n_iterations`` is less than 1.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_iterations: int = 1,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        save_top_k: int = 1,
    ) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations is {every_n_iterations}; it is at least 1")
        super().__init__(
            dirpath,
            "iteration-{iteration}",
            monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=True,
            auto_insert_metric_name=False,
            every_n_train_steps=0,  # Lightning's own triggers stay off
            enable_version_counter=False,
        )
        self.every_n_iterations = every_n_iterations

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due."""
        if iterations_done(trainer) % self.every_n_iterations == 0 or _is_last(trainer):
            self._save(trainer, is_ranked=not self._waits_for_validation)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was measured with the state that it was measured on."""
        if not trainer.sanity_checking:
            self._save(trainer, is_ranked=self._waits_for_validation)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: the last iteration has been saved, and here an epoch cut short would count as a whole one."""

    @property
    def _waits_for_validation(self) -> bool:
        return self.monitor is not None and self.monitor.startswith("val")

    def _save(self, trainer: Trainer, is_ranked: bool) -> None:
        if trainer.state.fn != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        candidates = self._monitor_candidates(trainer)
        if is_ranked and (self.monitor or is_healthy(trainer)):
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        return {**super()._monitor_candidates(trainer), "iteration": torch.tensor(iterations_done(trainer))}


def _is_last(trainer: Trainer) -> bool:
    """Whether the step or iteration that has just ended is the last one of its epoch or of the run."""
    reached = 0 <= trainer.max_steps <= trainer.global_step
    return reached or trainer.should_stop or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
