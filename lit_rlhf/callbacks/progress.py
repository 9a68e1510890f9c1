"""How far a run is: one live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from rich import get_console
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from lit_rlhf.callbacks.iterations import counts_iterations, steps_done
from lit_rlhf.metrics.phases import HasPhases, Phases

_STAGES: dict[RunningStage | None, str] = {
    RunningStage.TRAINING: "training",
    RunningStage.SANITY_CHECKING: "validation before training",
    RunningStage.VALIDATING: "validation",
    RunningStage.TESTING: "test",
    RunningStage.PREDICTING: "predict",
}
_BAR = 24
"""Width of the bar, in columns."""
_LEVEL = 0.01
"""Relative change of a metric below which its arrow is level."""


class Progress(ProgressBar):
    """Stage, steps done and to do, time left, and the metrics logged with ``prog_bar=True``, each with its trend.

    Algorithms with rollouts are counted in iterations, and the phase that an iteration is in stands beside them.

    Args:
        seconds_between_lines: least time between two lines where the output is not a terminal.
    """

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._enabled = True
        self._meter: Meter | None = None

    def disable(self) -> None:
        """Say nothing (Lightning calls this on every rank but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Say something again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a stage; a validation inside training keeps the line of training."""
        if self._meter is not None:
            self._meter.stage = _STAGES[trainer.state.stage]
        elif self._enabled:
            training = trainer.state.stage == RunningStage.TRAINING
            self._meter = Meter(
                _STAGES[trainer.state.stage],
                total_of(trainer),
                steps_done(trainer) if training else 0,
                self.seconds_between_lines,
                phases=pl_module.phases if isinstance(pl_module, HasPhases) else None,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a stage, or go back to training."""
        if self._meter is None:
            return
        if trainer.state.fn == TrainerFn.FITTING and trainer.state.stage == RunningStage.VALIDATING:
            self._meter.stage = _STAGES[RunningStage.TRAINING]
        else:
            self._meter.close()
            self._meter = None

    on_validation_start = on_test_start = on_predict_start = on_train_start
    on_validation_end = on_test_end = on_predict_end = on_train_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on in training."""
        if self._meter is not None:
            shown = self.get_metrics(trainer, pl_module)
            metrics = {name: value for name, value in shown.items() if isinstance(value, float)}
            self._meter.move(steps_done(trainer), metrics)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on in another stage."""
        if self._meter is not None and self._meter.stage == _STAGES[trainer.state.stage] and not self._in_fit(trainer):
            self._meter.move(batch_idx + 1, {})

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the live line, so that the message stands alone."""
        if self._meter is not None:
            self._meter.close()
            self._meter = None

    @staticmethod
    def _in_fit(trainer: Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and trainer.state.stage == RunningStage.VALIDATING


class Meter:
    """What is shown of one stage.

    Args:
        stage: its name.
        total: steps in all, None where unknown.
        done: steps done before it began.
        seconds_between_lines: as in :class:`Progress`.
        console: where to; None = the one that rich shares.
        phases: of an iteration; None = it has none.
    """

    def __init__(
        self,
        stage: str,
        total: int | None,
        done: int,
        seconds_between_lines: float,
        console: Console | None = None,
        phases: Phases | None = None,
    ) -> None:
        self.stage, self.total, self.done = stage, total, done
        self._phases = phases
        if phases is not None:
            phases.watcher = self.look
        self._first = done
        self._started = time.monotonic()
        self._trends: dict[str, Trend] = {}
        self._between = seconds_between_lines
        self._next_line = self._started + seconds_between_lines
        self._console = console or get_console()  # what others print there stands above the live line
        self._folds = False
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._line, console=self._console, refresh_per_second=4)
            self._live.start()

    def move(self, done: int, metrics: dict[str, float]) -> None:
        """Note how far things are.

        Args:
            done: steps done.
            metrics: latest value of each metric shown.
        """
        self.done = done
        for name, value in metrics.items():
            self._trends.setdefault(name, Trend()).add(value)
        self.look()

    def look(self) -> None:
        """Print a line where there is no live one, and the last is old enough."""
        if self._live is None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._between
            self._print()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._phases is not None:
            self._phases.watcher = None
        if self._live is not None:
            self._live.stop()
        else:
            self._print()

    def text(self) -> str:
        """Stage, steps, phase and time, without a bar."""
        of = f"/{self.total}" if self.total is not None else ""
        phase = self._phases.now if self._phases is not None else None  # read once: training changes it meanwhile
        return f"{self.stage} {self.done}{of}{f', {phase}' if phase else ''}  {self._clock()}"

    def metrics(self) -> str:
        """Metrics with their trends."""
        return "  ".join(f"{_short(name)} {trend}" for name, trend in self._trends.items())

    def _print(self) -> None:
        self._console.print(f"{self.text()}  {self.metrics()}".rstrip(), highlight=False, soft_wrap=True)

    def _line(self) -> Group:
        """One line where it fits, else the metrics below the bar, from then on."""
        text = Text(self.text(), "bold", no_wrap=True)
        metrics = Text(self.metrics(), "cyan", no_wrap=True, overflow="ellipsis")
        self._folds = self._folds or _BAR + len(text) + len(metrics) + 4 > self._console.width
        line = Table.grid(padding=(0, 2))
        bar = Bar(total=self.total, completed=self.done, width=_BAR, pulse=self.total is None)
        line.add_row(bar, text, *([] if self._folds else [metrics]))
        return Group(line, metrics) if self._folds and metrics else Group(line)

    def _clock(self) -> str:
        passed = time.monotonic() - self._started
        moved = self.done - self._first
        if self.total is None or not moved or self.done >= self.total:
            return _time(passed)
        return f"{_time(passed)} < {_time(passed / moved * (self.total - self.done))}"


class Trend:
    """A metric's smoothed value, and where it has gone lately."""

    def __init__(self) -> None:
        self._fast = self._slow = math.nan

    def add(self, value: float) -> None:
        """Take in a new value."""
        self._fast = value if math.isnan(self._fast) else self._fast + 0.3 * (value - self._fast)
        self._slow = value if math.isnan(self._slow) else self._slow + 0.05 * (value - self._slow)

    def __str__(self) -> str:
        change = self._fast - self._slow
        level = abs(change) <= _LEVEL * max(abs(self._slow), 1e-3)
        arrow = "\N{RIGHTWARDS ARROW}" if level else "\N{NORTH EAST ARROW}" if change > 0 else "\N{SOUTH EAST ARROW}"
        return f"{self._fast:.3g} {arrow}"


def total_of(trainer: Trainer) -> int | None:
    """Steps of the stage that the trainer is in; None where nobody knows."""
    if trainer.state.stage == RunningStage.TRAINING:
        # How many iterations the optimizer steps of `max_steps` take is not known before they are done.
        is_bounded = trainer.max_steps >= 0 and not counts_iterations(trainer.lightning_module)
        bounds = [trainer.max_steps if is_bounded else math.inf]
        if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(trainer.num_training_batches):
            bounds.append(
                trainer.max_epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            )
        total = min(bounds)
    else:
        batches: dict[RunningStage | None, list[int | float]] = {
            RunningStage.SANITY_CHECKING: trainer.num_sanity_val_batches,
            RunningStage.VALIDATING: trainer.num_val_batches,
            RunningStage.TESTING: trainer.num_test_batches,
            RunningStage.PREDICTING: trainer.num_predict_batches,
        }
        total = math.fsum(batches[trainer.state.stage])
    return int(total) if math.isfinite(total) else None


def _short(name: str) -> str:
    """``train/rewards/margin`` -> ``margin``; what is not of training keeps its first word."""
    split, _, rest = name.partition("/")
    leaf = (rest or split).rpartition("/")[2]
    return leaf if split in ("train", leaf) else f"{split} {leaf}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
