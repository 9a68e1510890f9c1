"""Shares of rows that were dropped or cut."""

from __future__ import annotations

import pytest

from lit_rlhf.metrics.data import DATA_METRICS, data_sums
from lit_rlhf.metrics.means import Means


def test_dropped_rows_count_among_all_rows():
    notes = {"dropped/empty_response": 1, "dropped/too_long/b": 1, "truncated/prompt": 3, "ignored/images": 2}
    found = data_sums(notes, 3)
    assert (found["data/dropped"], found["data/truncated"]) == ((2.0, 5.0), (3.0, 5.0))
    clean = data_sums({"tokens": 9, "room": 20}, 5)
    assert clean == {"data/dropped": (0.0, 5.0), "data/truncated": (0.0, 5.0), "data/fill": (9.0, 20.0)}
    means = Means(DATA_METRICS)
    means.update(found)
    means.update(clean)
    assert {name: float(value) for name, value in means.compute().items()} == pytest.approx(
        {
            "data/dropped": 0.2,
            "data/dropped/empty_response": 0.1,
            "data/dropped/too_long/b": 0.1,
            "data/truncated": 0.3,
            "data/truncated/prompt": 0.3,
            "data/fill": 9 / 20,
        }
    )
