"""A small tree with something of everything that may stand in a checkpoint."""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch


@pytest.fixture
def tree():
    shared = torch.randn(3, 4)
    return {
        "epoch": 1,
        "state_dict": OrderedDict({"head": shared, "embedding": shared, "scale": torch.tensor(2.0)}),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4).bfloat16()}}}],
        "lr_schedulers": [{"milestones": Counter({3: 2}), "eta": 1e-300, "best": float("inf"), "bad": -0.0}],
        "callbacks": {"A{'b': None}": {"rng": torch.get_rng_state(), "dtype": torch.bfloat16, "on": True}},
        "sizes": [torch.Size([2, 3]), (1, (2, "x")), {4, 5}, frozenset({"z"}), 2**90, -(2**70), 1 + 2j, b"\0\xff"],
        "places": [torch.device("cpu"), Path("a") / "b", None, "\ud800 \N{SNOWMAN}", ""],
        "!odd": {"!tuple": [1]},
        "strided": torch.arange(12).reshape(3, 4).T,
        "empty": [torch.empty(0, 5), [], {}, ()],
        "!flags": torch.tensor([True, False]),
        "halves": [torch.ones(2, dtype=torch.float16), torch.ones(3, dtype=torch.float8_e4m3fn)],
    }


def equal(one, other):
    """Whether two trees are the same, types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist()
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and not isinstance(one, torch.Size):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other and repr(one) == repr(other)


@pytest.fixture
def same():
    return equal
