"""Means: sums and counts, saved, reset, kept apart by source."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.metrics.means import Means


def test_means_are_reset_and_saved():
    means = Means(["a", "b"])
    means.update({"a": (torch.tensor(6.0), 3), "b": (1.0, torch.tensor(4.0))})
    again = Means(["a", "b"])
    again.load_state_dict(means.state_dict())
    again.update({})
    assert {name: float(value) for name, value in again.compute().items()} == {"a": 2.0, "b": 0.25}
    means.reset()
    assert means.compute() == {}


def test_sources_survive_a_restart():
    means = Means(["a"])
    means.update({"a/x": (3.0, 4), "a/y": (1.0, 1), "a": (4.0, 5), "a/why": (1.0, None)})
    again = Means(["a"])
    again.load_state_dict(means.state_dict())
    again.update({"a/x": (torch.tensor(1.0), 0)})
    assert {name: float(value) for name, value in again.compute().items()} == pytest.approx(
        {"a": 0.8, "a/x": 1.0, "a/y": 1.0, "a/why": 0.2}
    )
    again.reset()
    assert again.compute() == {}


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no metric 'loss'; there are: a, b"):
        Means(["a", "b"]).update({"loss": (1.0, 1)})


def test_half_precision_does_not_reach_the_sums():
    means = Means(["a"]).to(torch.bfloat16)
    for _ in range(3):
        means.reset()
        means.update({"a": (1000.0, 999)})
        means.update({"a": (1.0, 1)})
    assert float(means.compute()["a"]) == pytest.approx(1.001, rel=1e-6)


def test_what_each_mean_is_over():
    means = Means(["a", "b", "c"])
    assert means.counts() == {}
    means.update({"a/x": (3.0, 4), "a/y": (1.0, 1), "a": (4.0, 5), "a/why": (1.0, None), "b/only": (1.0, 1)})
    means.update({"a/x": (1.0, 2), "b": (1.0, 2)})
    assert set(means.counts()) == set(means.compute())
    assert {name: int(count) for name, count in means.counts().items()} == {
        "a": 5,
        "b": 2,
        "a/x": 6,
        "a/y": 1,
        "a/why": 5,
    }
