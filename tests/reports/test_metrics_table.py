"""``metrics.csv``, also where it is damaged."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.reports.metrics_table import read_metrics

HEAD = "step,train/loss,val/loss\r\n"


def read(folder, text, problems=None):
    (folder / "metrics.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_metrics(folder, problems)


def test_empty_cells_are_left_out(tmp_path):
    problems = []
    assert read(tmp_path, HEAD + "0,,1\r\n1,2,\r\n", problems) == [
        {"step": 0, "val/loss": 1},
        {"step": 1, "train/loss": 2},
    ]
    assert problems == []


def test_steps_that_were_done_again_count_once(tmp_path):
    rows = read(tmp_path, HEAD + "0,1,\r\n10,2,\r\n20,3,\r\n30,4,\r\n15,5,\r\n20,6,\r\n20,,7\r\n")
    assert [(row["step"], row["train/loss"]) for row in rows] == [(0, 1), (10, 2), (15, 5), (20, 6)]
    assert rows[-1]["val/loss"] == 7


def test_a_line_that_is_cut_short_is_told(tmp_path):
    problems = []
    assert read(tmp_path, HEAD + "0,1,2\r\n1,0.12", problems) == [{"step": 0, "train/loss": 1, "val/loss": 2}]
    assert problems == ["metrics.csv: its last line is cut short, and left out"]


@pytest.mark.parametrize("damage", ["1,x,2", "1,2,3,4", "y,1,2"])
def test_what_is_no_number_is_told(damage, tmp_path):
    problems = []
    rows = read(tmp_path, f"{HEAD}0,1,2\r\n{damage}\r\n2,1,2\r\n", problems)
    assert [row["step"] for row in rows] in ([0, 1, 2], [0, 2])
    assert problems == ["metrics.csv: 1 rows hold something that is no number, which is left out"]


def test_values_that_are_not_finite_are_kept(tmp_path):
    (row,) = read(tmp_path, HEAD + "0,nan,inf\r\n")
    assert math.isnan(row["train/loss"])
    assert row["val/loss"] == math.inf


@given(rubbish=st.binary())
def test_rubbish_is_no_reason_to_stop(rubbish, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rubbish")
    assert all("step" in row for row in read(folder, rubbish))
    assert all("step" in row for row in read(folder, HEAD.encode() + rubbish + b"\n"))


def test_no_file(tmp_path):
    assert read_metrics(tmp_path) == []
