"""JSON Lines: one row per line.

A plain file is read in byte ranges, in any order. A row belongs to the range that it begins in. A compressed one is
read from front to back.
"""

from __future__ import annotations

import codecs
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.readers.blocks import BLOCK_BYTES, Block, Place, in_blocks
from datamodules.readers.files import FileReader, SequentialReader, open_at

# Lines of files up to this size are counted, for addresses that an editor understands.
_MAX_NUMBERED = 1 << 30


class Lines(FileReader):
    """Lines of a plain file, in ranges.

    Addresses are ``:17``, the line, in files up to 1 GiB, and ``@4096``, the byte that the row begins at, above.

    Args:
        file: its path.
        name: what addresses begin with.
    """

    def __init__(self, file: Path, name: str) -> None:
        super().__init__(file, name)
        self.num_units = -(-self.num_bytes // BLOCK_BYTES)
        self.is_numbered = self.num_bytes <= _MAX_NUMBERED

    def size(self, unit: int, place: Place = None) -> float:
        """A range is one block."""
        return 1.0 if place is None else 0.0

    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield the one block of a range, if a row begins in it."""
        if place is not None:
            return
        self.check_unchanged()
        with self.file.open("rb") as stream:
            rows, num_bytes = self._range(stream, unit)
        if rows:
            yield Block(rows, 1, num_bytes)

    def counts(self, unit: int) -> Iterator[int]:
        """Rows of the one block of a range, without parsing them."""
        if num_rows := self._counted[1][unit]:
            yield num_rows

    def unit_of(self, key: str) -> int:
        """The range that a line or byte lies in."""
        at = int(key[1:])
        return bisect_right(self._lines_before, at - 1) - 1 if key[0] == ":" else at // BLOCK_BYTES

    @cached_property
    def _lines_before(self) -> array[int]:
        """Line ends that precede the first line to begin in each range, which is the number of that line from 0."""
        return array("q", accumulate(self._counted[0], initial=0))

    @cached_property
    def _counted(self) -> tuple[array[int], array[int]]:
        """Of each range: lines that begin in it, and those of them that are not blank."""
        lines, rows = array("q"), array("q")
        with self.file.open("rb") as stream, self.file.open("rb") as again:
            is_begun = True  # whether a line begins at the first byte of the range
            for unit in range(self.num_units):
                pieces = stream.read(BLOCK_BYTES).split(b"\n")
                whole, last = pieces[not is_begun : -1], pieces[-1]
                is_begun = is_begun or len(pieces) > 1
                lines.append(len(whole) + (is_begun and last != b""))
                if unit and not last.isspace():
                    rows.append(lines[-1] - sum(map(bytes.isspace, whole)) - whole.count(b""))
                else:  # a mark of UTF-8, or a line of which the next range tells whether it is blank
                    rows.append(len(self._range(again, unit, is_addressed=False)[0]))
                is_begun = last == b""
        return lines, rows

    def _range(self, stream: BinaryIO, unit: int, is_addressed: bool = True) -> tuple[list[tuple[str, Any]], int]:
        """The rows that begin in a range, and their bytes."""
        start = unit * BLOCK_BYTES
        before = min(start, 1)  # a line begins at the range's first byte if the byte before ends one
        stream.seek(start - before)
        held = stream.read(before + BLOCK_BYTES)
        skipped = held.find(b"\n") + 1 if before else 0
        if (before and not skipped) or skipped == len(held):
            return [], 0
        held = held[skipped:]
        if not held.endswith(b"\n"):
            held += stream.readline()
        at = start - before + skipped
        first = self._lines_before[unit] + 1 if is_addressed and self.is_numbered else 0
        rows: list[tuple[str, Any]] = []
        for number, line in enumerate(held.split(b"\n"), first):
            if text := _row(line, at == 0):
                key = f":{number}" if self.is_numbered else f"@{at}"
                rows.append((self.name + key, text))
            at += len(line) + 1
        return rows, len(held)


class CompressedLines(SequentialReader):
    """Lines of a compressed file. A place is the offset in the content and the lines before it."""

    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield blocks from front to back."""
        self.check_unchanged()
        offset, number = place or (0, 0)
        with open_at(self.file, offset) as stream:
            yield from in_blocks(self._rows(stream, offset, number))

    def _rows(self, stream: BinaryIO, offset: int, number: int) -> Iterator[tuple[str, Any, int, Place]]:
        for line in stream:
            text = _row(line, offset == 0)
            offset, number = offset + len(line), number + 1
            if text:
                yield f"{self.name}:{number}", text, len(line), [offset, number]


def _row(line: bytes, is_first: bool) -> bytes:
    return (line.removeprefix(codecs.BOM_UTF8) if is_first else line).strip()
