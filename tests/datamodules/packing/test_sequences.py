"""Texts to imitate, packed."""

from __future__ import annotations

import pytest

from datamodules.packing import TokenSequence, pack_sequences


def test_sequences_keep_their_masks():
    rows = [
        TokenSequence([1, 5, 6], [False, False, True], "a:1", "a"),
        TokenSequence([1, 7], [False, True], "b:1", "b"),
    ]
    (micro,) = pack_sequences(rows, 5).micro_batches
    assert micro.forest.tokens.tolist() == [1, 5, 6, 1, 7]
    assert micro.forest.targets.tolist() == [2, 4]
    assert micro.forest.parents == (-1, -1)
    assert (micro.rows, micro.sources) == (("a:1", "b:1"), ("a", "b"))
    assert [part.rows for part in pack_sequences(rows, 4).micro_batches] == [("a:1",), ("b:1",)]
    with pytest.raises(ValueError, match="the first token of a tree cannot be scored"):
        pack_sequences([TokenSequence([1], [True])], 5)
