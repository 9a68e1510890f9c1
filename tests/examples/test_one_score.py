"""The example runs, and its four ways agree."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "one_score.py"


def test_four_ways_one_score(tmp_path, capsys):
    scores = runpy.run_path(str(EXAMPLE))["main"](["--steps", "3", "--out", str(tmp_path / "run")])
    assert list(scores) == ["the module", "its folder", "PEFT", "merged"]
    for way in scores.values():
        assert way == pytest.approx(scores["the module"], abs=1e-5)
    assert "merged" in capsys.readouterr().out
