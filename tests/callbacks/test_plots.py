"""Curves of a run."""

from __future__ import annotations

import pytest

from lit_rlhf.callbacks.metrics_file import MetricsFile
from lit_rlhf.callbacks.plots import Plots, draw, score_against_kl

PNG = b"\x89PNG"


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


def path(parts=(), num=3):
    """Rows of a run with rollouts whose score follows its KL."""
    names = [f"{split}/{name}" for split in ("rollout", "val") for name in ("score", "kl", *parts)]
    return [{"step": float(step), **dict.fromkeys(names, 2.0 * step)} for step in range(num)]


def test_score_against_kl():
    axis = score_against_kl(path()).axes[0]
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[0, 0], [2, 2], [4, 4]]] * 2
    assert [points.get_array().tolist() for points in axis.collections] == [[0, 1, 2]] * 2
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["rollout", "val"]


def test_each_of_several_rewards_has_a_panel_against_kl():
    def titles(parts):
        return [axis.get_title(loc="left") for axis in score_against_kl(path(parts)).axes]

    assert titles(["rewards/kind", "rewards/short"]) == ["score", "rewards/kind", "rewards/short", ""]
    assert titles(["rewards/kind"]) == ["score", ""], "it is the score"


def test_without_two_points_there_is_no_path():
    assert score_against_kl(path(num=1)) is None
    assert score_against_kl([{"step": 1.0, "train/loss": 1.0}]) is None
    only_rollouts = [{name: value for name, value in row.items() if not name.startswith("val")} for row in path()]
    assert len(score_against_kl(only_rollouts).axes[0].collections) == 1


def test_the_path_is_among_the_pictures(tmp_path):
    log = MetricsFile(tmp_path)
    for row in path():
        log.log_metrics(row, int(row["step"]))
    assert "score_against_kl.png" in [picture.name for picture in draw(tmp_path)]
    assert (tmp_path / "plots" / "score_against_kl.png").read_bytes().startswith(PNG)
