"""Which metrics share a panel, and what is left of long curves."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.reports.curves import FIRST, curves, path_against_kl, thinned


def test_panels_put_together_what_belongs_together():
    rows = [
        {"step": step, "epoch": 0, "train/loss": step, "val/loss": 2, "train/rewards/chosen": step} for step in (1, 2)
    ]
    rows[0]["train/rewards/rejected"] = 4
    assert curves(rows) == {
        "loss": {"train": [(1, 1), (2, 2)], "val": [(1, 2), (2, 2)]},
        "rewards": {"train chosen": [(1, 1), (2, 2)], "train rejected": [(1, 4)]},
    }


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


def test_what_belongs_together_in_a_run_with_rollouts():
    names = ["rollout/rewards/kind", "val/rewards/kind", "rollout/rewards/short", "time/rollout", "time/update"]
    names += ["train/clip_fraction_low", "train/clip_fraction_high", "train/rewards/chosen", "train/rewards/accuracy"]
    panels = curves([{"step": step, **dict.fromkeys(names, step)} for step in (1.0, 2.0)])
    assert {panel: list(lines) for panel, lines in panels.items()} == {
        "score_parts": ["rollout kind", "rollout short", "val kind"],
        "rewards/accuracy": ["train"],
        "rewards": ["train chosen"],
        "clip_fraction": ["train high", "train low"],
        "seconds": ["time rollout", "time update"],
    }


def test_what_says_most_comes_first_and_what_became_of_rows_last():
    names = ["train/data/fill", "train/zebra", "train/loss", "train/apple"]
    rows = [{"step": step, **dict.fromkeys(names, step)} for step in (1.0, 2.0)]
    assert "loss" in FIRST
    assert list(curves(rows)) == ["loss", "apple", "zebra", "data/fill"]


def test_a_path_has_the_rows_with_both():
    rows = [
        {"step": 1.0, "val/kl": 2.0, "val/score": 3.0},
        {"step": 2.0, "val/kl": 4.0},
        {"step": 3.0, "val/score": 1.0},
    ]
    assert path_against_kl(rows, "val", "score") == [(1, 2, 3)]


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500), most=st.integers(4, 50))
def test_ends_and_extremes_are_kept(values, most):
    points = [(float(step), value) for step, value in enumerate(values)]
    kept = thinned(points, most)
    assert len(kept) <= most + 2
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {max(values), min(values)} <= {value for _, value in kept}


def test_a_spike_in_a_long_curve_is_seen():
    points = [(float(step), {700: 99.0, 800: -99.0}.get(step, 0.0)) for step in range(2000)]
    kept = thinned(points, 20)
    assert {(700.0, 99.0), (800.0, -99.0)} <= set(kept)
    assert len(kept) <= 22


def test_what_is_not_finite_is_not_drawn():
    assert thinned([(0, math.nan), (1, 2.0), (2, math.inf)]) == [(1, 2.0)]
