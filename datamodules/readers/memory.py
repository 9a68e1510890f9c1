"""Rows that no file of ours holds: in memory, in a data set of the ``datasets`` library, or on the hub."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from datamodules.readers.blocks import BLOCK_BYTES, BLOCK_ROWS, Block, Place, Reader, Undecoded
from datamodules.readers.image_columns import ImageRow, StoredRows, has_image_columns

if TYPE_CHECKING:
    from datasets import IterableDataset

_UNIT_ROWS = 16  # any row can be reached at once, so that units may be as small as they like


class Item(Undecoded):
    """A row of a sequence.

    Args:
        rows: the sequence.
        index: number of the row in it.
    """

    __slots__ = ("index", "rows")

    def __init__(self, rows: Sequence[Any], index: int) -> None:
        self.rows = rows
        self.index = index

    def decode(self) -> object:
        """Return the row."""
        row = self.rows[self.index]
        return row.decode() if isinstance(row, Undecoded) else row


class Indexed(Reader):
    """Rows that can be asked for by number: a list, or a ``datasets.Dataset``.

    Args:
        rows: the rows.
        name: what addresses begin with.
    """

    def __init__(self, rows: Sequence[Any], name: str) -> None:
        super().__init__(name, -(-len(rows) // _UNIT_ROWS))
        self.rows = StoredRows(rows) if has_image_columns(rows) else rows

    @property
    def fingerprint(self) -> list[Any]:
        """Number of rows, and a checksum of the first and the last."""
        ends = [self.rows[0], self.rows[len(self.rows) - 1]] if len(self.rows) else []
        return [len(self.rows), zlib.crc32(repr(_told(ends)).encode(errors="backslashreplace"))]

    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield the one block of a unit."""
        if place is None:
            numbers = range(unit * _UNIT_ROWS, min((unit + 1) * _UNIT_ROWS, len(self.rows)))
            yield Block([(f"{self.name}:{at + 1}", Item(self.rows, at)) for at in numbers], 1, 0)

    def size(self, unit: int, place: Place = None) -> float:
        """A unit is one block."""
        return 1.0 if place is None else 0.0

    def counts(self, unit: int) -> Iterator[int]:
        """Rows of the one block."""
        return iter([min(_UNIT_ROWS, len(self.rows) - unit * _UNIT_ROWS)])

    def unit_of(self, key: str) -> int:
        """The unit that a row lies in."""
        return (int(key[1:]) - 1) // _UNIT_ROWS


class Streamed(Reader):
    """A stream of the ``datasets`` library: one unit, read from front to back by every worker.

    A place is the number of rows before it, and for the hub the data set's own state, which goes on without reading
    what lies before. Another stream may hold rows in a shuffle buffer that its state leaves out, and is replayed.

    Args:
        open_stream: opens the stream.
        name: what addresses begin with.
        is_hub: whether the data set's state says all.
        count: tells the number of rows, None if nobody knows.
    """

    def __init__(
        self, open_stream: Callable[[], IterableDataset], name: str, is_hub: bool, count: Callable[[], int | None]
    ) -> None:
        super().__init__(name, 1)
        self.open_stream = open_stream
        self.is_hub = is_hub
        self.count = count

    @property
    def fingerprint(self) -> list[Any]:
        """Nothing is known of a stream."""
        return []

    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield blocks from front to back."""
        number, state = place or (0, None)
        stream = self.open_stream()
        features = stream.features if has_image_columns(stream) else None
        if features is not None:
            stream = stream.decode(False)
        if state is not None:
            stream.load_state_dict(state)
        elif number:
            stream = stream.skip(number)
        # `iter` and not `__iter__`, which inside a DataLoader's worker keeps other workers' shards to itself.
        for columns in stream.iter(batch_size=BLOCK_ROWS):
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            found = rows if features is None else [ImageRow(row, features) for row in rows]
            named = [(f"{self.name}:{at}", row) for at, row in enumerate(found, number + 1)]
            number += len(rows)
            yield Block(named, [number, stream.state_dict() if self.is_hub else None], BLOCK_BYTES)

    def size(self, unit: int, place: Place = None) -> float | None:
        """Blocks that are left."""
        num_rows = self.count()
        return None if num_rows is None else max(0, num_rows - (place[0] if place else 0)) / BLOCK_ROWS

    def counts(self, unit: int) -> None:
        """Nobody knows without reading everything."""


def _told(value: Any) -> Any:
    """A value that is written alike in every process: a picture is, by its pixels and not by its place in memory."""
    if isinstance(value, dict):
        return {key: _told(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_told(part) for part in value]
    if isinstance(value, ImageRow):
        return value.row
    return (value.mode, value.size, zlib.crc32(value.tobytes())) if isinstance(value, Image) else value
