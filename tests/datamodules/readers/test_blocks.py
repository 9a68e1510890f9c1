"""Rows are gathered into blocks by their bytes, and found again by their address."""

from __future__ import annotations

import pytest

from datamodules.readers import blocks
from datamodules.readers.blocks import Block, Reader, in_blocks


def test_in_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 10)
    rows = [(f"a:{number}", number, size, [number]) for number, size in enumerate((4, 4, 4, 30, 1), start=1)]
    assert list(in_blocks(rows)) == [
        Block([("a:1", 1), ("a:2", 2), ("a:3", 3)], [3], 12),
        Block([("a:4", 4)], [4], 30),
        Block([("a:5", 5)], [5], 1),
    ]
    assert list(in_blocks([])) == []


class Letters(Reader):
    """The least that a reader needs: two units of one block."""

    fingerprint = ()

    def blocks(self, unit, place=None):
        if place is None:
            yield Block([(f"{self.name}:{unit + 1}", "ab"[unit])], 1, 1)

    def size(self, unit, place=None):
        return None

    def unit_of(self, key):
        return int(key[1:]) - 1


def test_what_every_reader_can_do():
    reader = Letters("x", 2)
    assert list(reader.counts(1)) == [1]
    assert reader.find("x:2") == "b"
    with pytest.raises(ValueError, match=r"there is no row 'x:3'; it is blank, or the data end before it"):
        reader.find("x:3")
