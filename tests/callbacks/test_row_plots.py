"""Rewards of single responses as pictures."""

from __future__ import annotations

import json

from lit_rlhf.callbacks.metrics_file import MetricsFile
from lit_rlhf.callbacks.plots import draw
from lit_rlhf.callbacks.row_plots import _by_length, _spreads, draw_rows
from lit_rlhf.reports.left import Run

ROWS = [
    {"step": step, "chosen": 1.0 * step, "rejected": -1.0 * step, "chosen_length": 5, "rejected_length": 3}
    for step in (0, 1, 1)
]


def test_before_stands_above_after():
    above, below = _spreads(Run("", held_out=ROWS)).axes
    assert [axis.get_title(loc="left") for axis in (above, below)] == ["rewards before", "rewards after"]
    before, after = ([bar.get_x() for bar in axis.patches if bar.get_height()] for axis in (above, below))
    assert before[0] == before[1], "both are 0"
    assert after == [max(after), min(after)]


def test_points_stand_at_their_lengths():
    (axis,) = _by_length(Run("", held_out=ROWS)).axes
    assert [points.get_offsets().tolist() for points in axis.collections] == [[[5, 1]] * 2, [[3, -1]] * 2]
    assert axis.get_title(loc="left") == "reward by length    correlation +1.00"


def test_among_the_pictures_of_a_run(tmp_path):
    log = MetricsFile(tmp_path)
    for step in range(2):
        log.log_metrics({"train/loss": step}, step)
    assert draw_rows(tmp_path) == []
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [path.name for path in draw(tmp_path)][1:3] == ["rewards_before_after.png", "reward_by_length.png"]
    assert (tmp_path / "plots" / "reward_by_length.png").stat().st_size > 5000
