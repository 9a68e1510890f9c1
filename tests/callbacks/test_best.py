"""Which checkpoint callback says what is best."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lit_rlhf.callbacks.best import load_best, ranking_checkpoint
from lit_rlhf.callbacks.checkpoints import IterationCheckpoint, StepCheckpoint


def trainer(*callbacks):
    return SimpleNamespace(checkpoint_callbacks=[*callbacks])


def test_the_one_that_ranks(tmp_path):
    newest = StepCheckpoint(tmp_path)
    best = IterationCheckpoint(tmp_path / "best", monitor="val/score")
    assert ranking_checkpoint(trainer(newest, best)) is best


@pytest.mark.parametrize("options", [{}, {"monitor": "val/loss", "save_top_k": 0}])
def test_none_that_ranks_or_keeps_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match="weights: best needs a checkpoint callback"):
        ranking_checkpoint(trainer(StepCheckpoint(tmp_path, **options)))


def test_a_run_that_kept_none_has_its_last(tmp_path):
    assert load_best(trainer(StepCheckpoint(tmp_path, monitor="val/loss"))) == ""
