"""What every run gets beside what the user gives: callbacks that watch, save and report, and loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lit_rlhf.callbacks.batch_kind import BatchKind
from lit_rlhf.callbacks.checkpoints import IterationCheckpoint, StepCheckpoint
from lit_rlhf.callbacks.event_files import EventFiles, is_available
from lit_rlhf.callbacks.export import AdapterExport
from lit_rlhf.callbacks.health import HealthBands
from lit_rlhf.callbacks.held_out import HeldOutRows
from lit_rlhf.callbacks.last_look import LastLook
from lit_rlhf.callbacks.metrics_file import MetricsFile
from lit_rlhf.callbacks.origin import Origin
from lit_rlhf.callbacks.plots import Plots
from lit_rlhf.callbacks.predictions import PredictionsFile
from lit_rlhf.callbacks.preemption import Preemption
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.callbacks.rank_watch import RankWatch
from lit_rlhf.callbacks.reliability import ReliabilityPlot
from lit_rlhf.callbacks.report import Report
from lit_rlhf.callbacks.rollout_table import RolloutTable
from lit_rlhf.callbacks.samples import SampleTable
from lit_rlhf.callbacks.score_spread import ScoreSpread
from lit_rlhf.callbacks.subset_table import SubsetTable
from lit_rlhf.callbacks.summary import RunSummary
from lit_rlhf.commands.run_folder import CHECKPOINTS
from lit_rlhf.metrics.phases import HasPhases

_AVERAGING = (
    "{} keeps a second copy of the frozen base, which checkpoints here leave out: such a run could not be gone on "
    "from; in a Trainer of your own it works, without resuming"
)
REFUSED: dict[type[Callback], str] = {
    LearningRateFinder: (
        "LearningRateFinder sets the rate of a module, and here it belongs to the optimizer: let "
        "Tuner(trainer).lr_find(module, ..., update_attr=False) suggest one in Python, and set model.optimizer.lr"
    ),
    BatchSizeFinder: (
        "BatchSizeFinder looks for what fits into memory, which data.batch_size does not change here: lower "
        "data.token_budget (model.updates.token_budget with rollouts); lit-rlhf estimate says by how much"
    ),
    StochasticWeightAveraging: _AVERAGING.format("StochasticWeightAveraging"),
    WeightAveraging: _AVERAGING.format("WeightAveraging"),
    BaseFinetuning: "model.backbone.lora says what is trained, and a callback that freezes layers cannot change it",
}
"""Callbacks of Lightning that cannot do here what they promise, and what to do instead."""


def refuse_callbacks(given: list[Callback]) -> None:
    """Refuse callbacks that cannot do what they promise.

    Raises:
        ValueError: saying why, and what to do instead.
    """
    for callback in given:
        for kind, reason in REFUSED.items():
            if isinstance(callback, kind):
                raise ValueError(f"trainer.callbacks: {reason}")


def run_callbacks(command: str, module: LightningModule, folder: Path, *, requeue: bool) -> list[Callback]:
    """Callbacks that a run gets unless the user gives one of their kind.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        module: the algorithm.
        folder: of the run.
        requeue: whether a cluster may be asked to start the run again.
    """
    learns_from_rollouts = isinstance(module, HasPhases)
    # Validation loads `--ckpt_path=last` through the ModelCheckpoint too.
    checkpoint = (IterationCheckpoint if learns_from_rollouts else StepCheckpoint)(folder / CHECKPOINTS)
    if command == "predict":
        return [BatchKind(), Origin(), checkpoint, PredictionsFile()]
    if command != "fit":
        return [BatchKind(), Origin(), checkpoint, ReliabilityPlot(), SubsetTable()]
    table = RolloutTable() if learns_from_rollouts else SampleTable()
    saying = [BatchKind(), RandomState(), Origin(), RankWatch()]
    watching = [LastLook(), table, HeldOutRows(), HealthBands(), ScoreSpread()]
    leaving = [AdapterExport(), Plots(), ReliabilityPlot(), Report(), RunSummary()]  # a report lists what others left
    return [*saying, *watching, *leaving, checkpoint, Preemption(requeue=requeue)]


def run_loggers(command: str, given: Any, folder: str) -> list[Logger] | bool:
    """The user's loggers, behind ours: Lightning takes the folder of the run from the first.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        given: what ``trainer.logger`` is: one, several, none, or False for none at all.
        folder: of the run.
    """
    loggers = [logger for logger in listed(given) if isinstance(logger, Logger)]
    if command != "fit" or given is False:
        return loggers or False
    ours: list[Logger] = [MetricsFile(folder)]
    if is_available() and not any(isinstance(logger, TensorBoardLogger) for logger in loggers):
        ours.append(EventFiles(folder))
    return [*ours, *loggers]


def listed(given: Any) -> list[Any]:
    """What the user gave, one or several or none, as a list."""
    return given if isinstance(given, list) else [] if given is None else [given]


def missing(ours: list[Callback], given: list[Callback]) -> list[Callback]:
    """Ours of those kinds that the user gave none of."""
    kinds: dict[type, type] = {StepCheckpoint: ModelCheckpoint}

    def is_given(kind: type) -> bool:
        return any(isinstance(callback, kinds.get(kind, kind)) for callback in given)

    return [callback for callback in ours if not is_given(type(callback))]
