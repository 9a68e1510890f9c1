"""Rows from all over a source, without reading it whole, and how many rows it has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from datamodules.readers.blocks import Block, Place, Reader
from datamodules.readers.files import SequentialReader
from datamodules.readers.lines import Lines
from datamodules.sources import OpenSource, Row

# Times as many rows are gathered as are wanted, so that they come from many places. Huge rows end that early.
_SPREAD = 8
_GATHERED_BYTES = 1 << 26


class Sample(NamedTuple):
    """Some rows of a source.

    Args:
        rows: the rows, in file order.
        num_rows: rows that the source has; None if nobody knows.
        is_exact: whether that number was counted; else it is an estimate from the bytes that were read.
        is_beginning: whether they are the first rows of what can only be read from front to back.
    """

    rows: list[Row]
    num_rows: int | None
    is_exact: bool
    is_beginning: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows."""
        return self.is_exact and len(self.rows) == self.num_rows


def take_sample(source: OpenSource, max_rows: int, seed: int = 0) -> Sample:
    """Read some rows of a source.

    Args:
        source: where they lie.
        max_rows: most rows to take.
        seed: of the choice.

    Raises:
        ValueError: if the source cannot be read.
    """
    is_one_unit = source.num_units == 1
    wanted = max_rows if is_one_unit else max_rows * _SPREAD
    rows: list[Row] = []
    num_bytes, size = 0, 0.0
    blocks = _blocks(source, seed)
    for block, block_size in blocks:
        rows += source.rows(block)
        num_bytes += block.num_bytes
        size += block_size
        if len(rows) >= wanted or num_bytes >= _GATHERED_BYTES:
            break
    is_at_end = next(blocks, None) is None
    num_rows, is_exact = (len(rows), True) if is_at_end else _num_rows(source, len(rows), size)
    is_beginning = is_one_unit and not (is_at_end and len(rows) <= max_rows)
    if len(rows) > max_rows:
        rows = rows[:max_rows] if is_one_unit else random.Random(seed).sample(rows, max_rows)
    return Sample(sorted(rows, key=_place), num_rows, is_exact, is_beginning)


def _blocks(source: OpenSource, seed: int) -> Iterator[tuple[Block, float]]:
    """The first block of every unit in random order, then the second of every unit ...; and how much of the whole."""
    if source.num_units == 1:
        place: Place = None
        for block in source.blocks(0):
            yield block, _size(source, 0, place, block.place)
            place = block.place
        return
    going: list[tuple[int, Place, int]] = [(unit, None, 0) for unit in range(source.num_units)]
    random.Random(seed).shuffle(going)
    while going:
        later = []
        for unit, place, done in going:
            for block in islice(source.blocks(unit, place, done), 1):
                yield block, _size(source, unit, place, block.place)
                later.append((unit, block.place, done + len(block.rows)))
        going = later


def _size(source: OpenSource, unit: int, start: object, end: object) -> float:
    """How much of a unit lies between two places; 0 if nobody knows."""
    return (source.size(unit, start) or 0.0) - (source.size(unit, end) or 0.0)


def _num_rows(source: OpenSource, num_read: int, size_read: float) -> tuple[int | None, bool]:
    """Rows of a source, and whether they were counted: where that is cheap."""
    if all(map(_is_counted, source.readers)):
        return source.num_rows, True
    sizes = [source.size(unit) for unit in range(source.num_units)]
    if None in sizes or not size_read:
        return None, False
    estimate = max(num_read, round(num_read * sum(filter(None, sizes)) / size_read))
    return min(estimate, source.source.limit or estimate), False


def _is_counted(reader: Reader) -> bool:
    """Whether a reader tells its rows without reading everything for that alone."""
    return reader.is_numbered if isinstance(reader, Lines) else not isinstance(reader, SequentialReader)


def _place(row: Row) -> tuple[str, int]:
    """Order of rows: by file, then by number."""
    file, _, number = row.address.replace("@", ":").rpartition(":")
    return file, int(number)
