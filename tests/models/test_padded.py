"""The padded layout: rows by hand, and every token's cell holds that token."""

from __future__ import annotations

from lit_rlhf.models.padded import unfold


def test_rows_by_hand(make_forest):
    rows = unfold(make_forest([([5, 6], -1), ([7], 0), ([8, 9], 0)], [([3], -1)]))
    assert rows.tokens.tolist() == [[5, 6, 7, 5], [5, 6, 8, 9], [3, 3, 3, 3]]
    assert rows.mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert rows.cells.tolist() == [0, 1, 2, 6, 7, 8]


def test_every_token_has_a_cell_that_holds_it(ragged):
    rows = unfold(ragged)
    assert rows.tokens.flatten()[rows.cells].equal(ragged.tokens)
    assert rows.positions.flatten()[rows.cells].equal(ragged.positions)
    assert rows.mask.flatten()[rows.cells].all()
