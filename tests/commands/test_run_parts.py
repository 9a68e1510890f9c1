"""What every run gets, and what a user's own takes the place of."""

from __future__ import annotations

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.callbacks.checkpoints import IterationCheckpoint, StepCheckpoint
from lit_rlhf.callbacks.export import AdapterExport
from lit_rlhf.callbacks.plots import Plots
from lit_rlhf.callbacks.report import Report
from lit_rlhf.callbacks.rollout_table import RolloutTable
from lit_rlhf.callbacks.samples import SampleTable
from lit_rlhf.callbacks.summary import RunSummary
from lit_rlhf.commands import run_parts
from lit_rlhf.commands.run_parts import listed, missing, refuse_callbacks, run_callbacks, run_loggers
from lit_rlhf.metrics.phases import Phases


class Learner(LightningModule):
    pass


class Roller(LightningModule):
    def __init__(self):
        super().__init__()
        self.phases = Phases()


def kinds(callbacks):
    return [type(callback) for callback in callbacks]


def test_algorithms_with_rollouts_are_saved_between_iterations_and_shown_by_responses(tmp_path):
    plain, rolling = (kinds(run_callbacks("fit", module(), tmp_path, requeue=False)) for module in (Learner, Roller))
    assert {StepCheckpoint, SampleTable} < {*plain}
    assert {IterationCheckpoint, RolloutTable} < {*rolling}
    assert {*plain} ^ {*rolling} == {StepCheckpoint, SampleTable, IterationCheckpoint, RolloutTable}


def test_the_report_comes_after_what_it_lists(tmp_path):
    order = kinds(run_callbacks("fit", Learner(), tmp_path, requeue=False))
    assert order.index(AdapterExport) < order.index(Plots) < order.index(Report) < order.index(RunSummary)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_nothing_is_exported_by_commands_that_do_not_train(command, tmp_path):
    found = {*kinds(run_callbacks(command, Learner(), tmp_path, requeue=False))}
    assert StepCheckpoint in found
    assert not {AdapterExport, Report, RunSummary} & found


def test_what_the_user_gives_takes_the_place_of_ours_of_its_kind(tmp_path):
    ours = run_callbacks("fit", Learner(), tmp_path, requeue=False)
    left = kinds(missing(ours, [ModelCheckpoint(tmp_path), SampleTable(), EarlyStopping("x")]))
    assert {*kinds(ours)} - {*left} == {StepCheckpoint, SampleTable}


def test_loggers(tmp_path, monkeypatch):
    mine = CSVLogger(tmp_path)
    names = [type(logger).__name__ for logger in run_loggers("fit", mine, str(tmp_path))]
    assert names == ["MetricsFile", "EventFiles", "CSVLogger"]
    assert run_loggers("fit", False, str(tmp_path)) is False
    assert run_loggers("validate", None, str(tmp_path)) is False
    assert run_loggers("validate", [mine], str(tmp_path)) == [mine]
    monkeypatch.setattr(run_parts, "is_available", lambda: False)
    assert [type(logger).__name__ for logger in run_loggers("fit", None, str(tmp_path))] == ["MetricsFile"]


@pytest.mark.parametrize(
    ("callback", "instead"),
    [
        (LearningRateFinder(), r"Tuner\(trainer\)\.lr_find\(module, \.\.\., update_attr=False\)"),
        (BatchSizeFinder(), r"lower data\.token_budget"),
        (EMAWeightAveraging(), "WeightAveraging keeps a second copy of the frozen base"),
        (StochasticWeightAveraging(0.1), "StochasticWeightAveraging keeps a second copy"),
        (BackboneFinetuning(), r"model\.backbone\.lora says what is trained"),
    ],
)
def test_callbacks_that_cannot_do_what_they_promise_are_refused(callback, instead):
    with pytest.raises(ValueError, match=instead):
        refuse_callbacks([EarlyStopping("x"), callback])
    refuse_callbacks([EarlyStopping("x")])


def test_listed():
    assert [listed(None), listed(1), listed([1, 2])] == [[], [1], [1, 2]]
