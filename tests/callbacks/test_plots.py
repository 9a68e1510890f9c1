"""Curves of a run."""

from __future__ import annotations

import pytest

from lit_rlhf.callbacks.metrics_file import MetricsFile
from lit_rlhf.callbacks.plots import Plots, curves, draw

PNG = b"\x89PNG"


def test_panels_put_together_what_belongs_together():
    rows = [
        {"step": step, "epoch": 0, "train/loss": step, "val/loss": 2, "train/rewards/chosen": step} for step in (1, 2)
    ]
    rows[0]["train/rewards/rejected"] = 4
    assert curves(rows) == {
        "loss": {"train": [(1, 1), (2, 2)], "val": [(1, 2), (2, 2)]},
        "rewards": {"train chosen": [(1, 1), (2, 2)], "train rejected": [(1, 4)]},
    }


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_single_point_or_a_level_line_is_no_curve(num_steps, tmp_path):
    log = MetricsFile(tmp_path)
    for step in range(num_steps):
        log.log_metrics({"train/loss": 1}, step)
    assert draw(tmp_path) == []
    assert not (tmp_path / "plots").exists()


def test_pictures(tmp_path):
    log = MetricsFile(tmp_path)
    for step in range(4):
        log.log_metrics({"train/loss": 1 / (step + 1), "val/rewards/accuracy": step / 4}, step)
    pictures = draw(tmp_path)
    assert [path.name for path in pictures] == ["loss.png", "rewards_accuracy.png", "all.png"]
    assert all(path.read_bytes().startswith(PNG) for path in pictures)


@pytest.mark.parametrize("fails_at", [-1, 2])
def test_drawn_at_the_end_also_of_an_interrupted_run(fails_at, train, policy, tmp_path):
    ours = policy(fails_at, KeyError("x"))
    if fails_at < 0:
        train(ours, Plots(), logger=MetricsFile(tmp_path))
    else:
        with pytest.raises(KeyError):
            train(ours, Plots(), logger=MetricsFile(tmp_path))
    assert (tmp_path / "plots" / "loss.png").is_file()


def test_sources_are_lines_of_one_panel():
    rows = [
        {"step": at, "val/accuracy": 0.1 * at, "val/accuracy/data/hh.jsonl": 0.2 * at, "val/accuracy/own": 0.3 * at}
        for at in range(2)
    ]
    assert set(curves(rows)) == {"accuracy"}
    assert set(curves(rows)["accuracy"]) == {"val", "val data/hh.jsonl", "val own"}


def test_buckets_of_length_are_lines_of_one_panel():
    rows = [{"step": step, "val/a_by_length/short": step, "val/a_by_length/long": -step} for step in (1.0, 2.0)]
    assert set(curves(rows)["a_by_length"]) == {"val short", "val long"}
