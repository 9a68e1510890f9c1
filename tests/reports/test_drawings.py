"""The drawings of a run: each where it has data, none where it has not."""

from __future__ import annotations

import pytest

from lit_rlhf.reports import drawings
from lit_rlhf.reports.drawings import correlation, numbers
from lit_rlhf.reports.left import Run, read_run

DRAWINGS = ("curve_grid", "spreads", "score_paths", "calibration", "length_against_reward", "phases")


@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_is_drawn_of_nothing(name, tmp_path):
    assert vars(drawings)[name](Run(tmp_path)) is None


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_whole_run_has_all(name, finished):
    assert "<svg" in vars(drawings)[name](read_run(finished()))


def test_six_curves_are_seen_at_once(finished):
    shown = drawings.curve_grid(read_run(finished()))
    seen, _, hidden = shown.partition(" more curves")
    assert seen.count("<svg") == 6
    assert hidden.count("<svg") == int(seen.rpartition(">")[2])
    assert "rises, then flattens; both alike" in seen


def test_spreads_of_pairs_share_an_axis_and_those_of_responses_a_drawing(finished):
    run = read_run(finished())
    assert drawings.spreads(run).count("<svg") == 1
    assert "before, mean 3" in drawings.spreads(run)
    assert "after, mean 12" in drawings.spreads(run)
    run.held_out = [{"step": step, "chosen": 9.0 * step, "rejected": -9.0 * step} for step in (0, 1)]
    pairs = drawings.spreads(run)
    assert pairs.count("<svg") == 2
    before, after = pairs.split("<figure")[1:]
    assert before.count(">-5<") == after.count(">-5<") == 1
    run.held_out = run.held_out[:1]
    assert drawings.spreads(run).count("<svg") == 1


def test_each_of_several_rewards_has_a_path(finished):
    run = read_run(finished())
    assert drawings.score_paths(run).count("<svg") == 3
    run.metrics = [{name: row[name] for name in row if "short" not in name} for row in run.metrics]
    assert drawings.score_paths(run).count("<svg") == 1


def test_length_against_reward_says_how_far_they_go_together(finished):
    assert "correlation +1.00" in drawings.length_against_reward(read_run(finished()))


def test_time_and_throughput(finished):
    shown = drawings.phases(read_run(finished()))
    assert "rollout 75%" in shown
    assert '<td class="number">102</td><td class="number">100</td><td class="number">103</td>' in shown


def test_values_that_are_none_are_left_out():
    rows = [{"a": 1}, {"a": "x"}, {"a": None}, {"a": float("nan")}, {}, {"a": 2.5}]
    assert numbers(rows, "a") == [1, 2.5]


def test_correlation():
    assert correlation([(0, 1), (1, 0)]) == pytest.approx(-1)
    assert correlation([(0, 0), (1, 1), (0, 1), (1, 0)]) == 0
    assert correlation([(1, 1), (1, 2)]) is None
    assert correlation([]) is None
