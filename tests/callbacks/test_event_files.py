"""TensorBoard sees each step of a run once, also where the run was killed and resumed."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rlhf.callbacks.event_files import EventFiles


def curve(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_resumed_run_takes_the_place_of_the_steps_that_it_does_again(tmp_path):
    first = EventFiles(tmp_path)
    for step in range(5):
        first.log_metrics({"train/loss": 10.0 + step}, step)
    first.save()  # and is killed
    second = EventFiles(tmp_path)
    for step in range(3, 6):
        second.log_metrics({"train/loss": 20.0 + step}, step)
    second.finalize("success")
    steps = [(0, 10.0), (1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0), (5, 25.0)]
    assert curve(tmp_path / "tensorboard", "train/loss") == steps


def test_under_a_trainer_it_leaves_its_own_file_alone(train, policy, tmp_path):
    train(policy(), logger=EventFiles(tmp_path))
    assert [step for step, _ in curve(tmp_path / "tensorboard", "train/loss")] == [0, 1, 2]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents")


def test_nothing_logged_leaves_nothing(tmp_path):
    logger = EventFiles(tmp_path)
    logger.log_hyperparams({"lr": 1.0})
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []
