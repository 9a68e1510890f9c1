"""The example runs, and its rewards say what they should."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_reward.py"


def test_three_rewards(capsys):
    scored = runpy.run_path(str(EXAMPLE))["main"]()
    assert scored.parts == {
        "exact_answer": [1.0, 1.0, 0.0],
        "shows_work": [1.0, 0.0, 0.0],
        "politeness": [0.5, 0.0, 0.5],
    }
    assert scored.total == [3.25, 2.0, 0.25]
    assert "politeness" in capsys.readouterr().out
