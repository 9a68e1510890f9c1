"""The example runs, its function says what it should, and the policy learns it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "ppo_function.py"))


def test_the_reward_by_hand():
    assert EXAMPLE["right_and_short"]("Old.", opposite="old") == pytest.approx(0.95)
    assert EXAMPLE["right_and_short"]("It is new!", opposite="old") == pytest.approx(-0.15)


def test_an_iteration_and_what_is_left(tmp_path):
    scores = EXAMPLE["train"](2, tmp_path)
    assert len(scores) == 2
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "critic" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_it_learns():
    scores = EXAMPLE["train"](16)
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.3
