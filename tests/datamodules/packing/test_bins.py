"""Micro-batches are filled largest first, by first fit, and their fill is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.packing import (
    TokenPair,
    fill_bins,
    pack_graded,
    pack_pairs,
    pack_sequences,
    pack_steps,
    pack_trees,
    pack_unpaired,
)
from lit_rlhf.types import Cursor


def test_first_fit_largest_first():
    assert fill_bins([4, 3, 6, 1, 2], capacity=8) == [[0, 1, 3], [2, 4]]
    assert fill_bins([9, 1], capacity=8) == [[0], [1]]
    assert fill_bins([5, 4, 2, 2], capacity=7) == [[0, 2], [1, 3]]
    assert fill_bins([], capacity=8) == []


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 40))
def test_bins_hold_what_a_plain_search_puts_there(sizes, capacity):
    bins = []
    for size, index in sorted(
        ((size, index) for index, size in enumerate(sizes)), key=lambda item: (-item[0], item[1])
    ):
        fitting = (items for items in bins if sum(sizes[item] for item in items) + size <= capacity)
        items = next(fitting, None)
        if items is None:
            bins.append(items := [])
        items.append(index)
    assert fill_bins(sizes, capacity) == sorted(map(sorted, bins))


def test_the_fill_is_counted():
    pairs = [TokenPair([1], [2, 2], [3]), TokenPair([1], [2], [3]), TokenPair([1] * 9, [2], [3])]
    batch = pack_pairs(pairs, 8, {"dropped/x": 1})
    assert batch.notes == {"dropped/x": 1, "tokens": 4 + 3 + 11, "room": 8 + 11}


@pytest.mark.parametrize(
    "pack", [pack_pairs, pack_trees, pack_unpaired, pack_graded, pack_steps, pack_sequences], ids=lambda f: f.__name__
)
def test_an_empty_step_is_a_batch(pack):
    batch = pack([], 8, notes={"dropped/empty_response": 2}, cursor=Cursor(1, 2))
    assert batch == ((), {"dropped/empty_response": 2}, Cursor(1, 2))
