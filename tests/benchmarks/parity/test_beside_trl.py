"""What the comparisons with TRL share: losses are held against each other, over the same tokens alone."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

PLAN = {"settings": {"one": 1.0, "other": 2.0}}


@pytest.fixture(scope="module")
def compare(load_script):
    load_script("parity/dpo.py")
    return sys.modules["beside_trl"].compare_losses


def ours(plan, factor):
    return SimpleNamespace(losses=[0.5 * factor, -2.0], tokens={1: "second", 0: "first"})


def test_the_worst_step_of_every_setting(compare):
    theirs = {"tokens": ["first", "second"], "one": [0.4, -2.0], "other": [1.0, -1.6]}
    assert compare(ours, PLAN, theirs) == {"one": pytest.approx(0.25), "other": pytest.approx(0.25)}


@pytest.mark.parametrize("tokens", [["second", "first"], ["first"]])
def test_other_tokens_are_refused(compare, tokens):
    with pytest.raises(ValueError, match="the same tokens"):
        compare(ours, PLAN, {"tokens": tokens, "one": [0.5, -2.0], "other": [1.0, -2.0]})


def test_a_step_that_is_missing_is_refused(compare):
    with pytest.raises(ValueError, match="one: TRL took 1 steps, ours 2"):
        compare(ours, PLAN, {"tokens": ["first", "second"], "one": [0.5], "other": [1.0, -2.0]})
