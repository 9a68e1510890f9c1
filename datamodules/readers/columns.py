"""Tables by column: Parquet, and Arrow in both of its layouts."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from datamodules.readers.blocks import BLOCK_BYTES, BLOCK_ROWS, Block, Place, Undecoded
from datamodules.readers.files import FileReader
from datamodules.records import BadRowError


class BatchRow(Undecoded):
    """One row of a batch of columns.

    Args:
        batch: the columns.
        index: number of the row in it.
    """

    __slots__ = ("batch", "index")

    def __init__(self, batch: pa.RecordBatch, index: int) -> None:
        self.batch = batch
        self.index = index

    def decode(self) -> dict[str, Any]:
        """Return values by column.

        Raises:
            BadRowError: if Python has no such value, such as a date after the year 9999 or text that is not UTF-8.
        """
        columns = zip(self.batch.schema.names, self.batch.columns, strict=True)
        try:
            return {name: column[self.index].as_py() for name, column in columns}
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise BadRowError("broken_value", f"a value cannot be read: {error}") from None


class ColumnReader(FileReader):
    """Rows of a file by column; its units are row groups or batches. A place is the number of rows before it.

    Args:
        file: its path.
        name: what addresses begin with.
        unit_rows: rows of each unit.
        unit_bytes: bytes of each unit.
    """

    def __init__(self, file: Path, name: str, unit_rows: list[int], unit_bytes: list[int]) -> None:
        super().__init__(file, name, len(unit_rows))
        self.first_rows = array("q", accumulate(unit_rows, initial=0))
        sizes = zip(unit_rows, unit_bytes, strict=True)
        self.block_rows = [max(1, min(BLOCK_ROWS, BLOCK_BYTES * rows // max(size, 1))) for rows, size in sizes]

    def size(self, unit: int, place: Place = None) -> float:
        """Blocks that are left."""
        return -(-(self._num_rows(unit) - (place or 0)) // self.block_rows[unit])

    def counts(self, unit: int) -> Iterator[int]:
        """Rows of each block, without reading them."""
        num_rows, step = self._num_rows(unit), self.block_rows[unit]
        return (min(step, num_rows - start) for start in range(0, num_rows, step))

    def unit_of(self, key: str) -> int:
        """The unit that a row lies in."""
        return bisect_right(self.first_rows, int(key[1:]) - 1) - 1

    def _num_rows(self, unit: int) -> int:
        return self.first_rows[unit + 1] - self.first_rows[unit]

    def _block(self, batch: pa.RecordBatch, unit: int, place: int) -> Block:
        """The block of a batch that begins after ``place`` rows of the unit."""
        first = self.first_rows[unit] + place + 1
        rows = [(f"{self.name}:{first + index}", BatchRow(batch, index)) for index in range(batch.num_rows)]
        return Block(rows, place + batch.num_rows, batch.nbytes)


class Parquet(ColumnReader):
    """A Parquet file; its units are row groups, whose pages are read one after another.

    Args:
        file: its path.
        name: what addresses begin with.

    Raises:
        ValueError: if it is no Parquet file.
    """

    def __init__(self, file: Path, name: str) -> None:
        with named(f"{file}: not a Parquet file"):
            self.metadata = ParquetFile(file).metadata
        groups = [self.metadata.row_group(unit) for unit in range(self.metadata.num_row_groups)]
        super().__init__(file, name, [group.num_rows for group in groups], [group.total_byte_size for group in groups])

    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield blocks of a row group. What lies before ``place`` is unpacked and passed over."""
        self.check_unchanged()
        at, start = 0, place or 0
        # A buffer, and nothing read ahead: else the whole row group, perhaps the whole file, is held.
        options = {"metadata": self.metadata, "pre_buffer": False, "buffer_size": BLOCK_BYTES}
        with named(f"{self.file}: row group {unit} is broken"), ParquetFile(self.file, **options) as opened:
            for batch in opened.iter_batches(self.block_rows[unit], row_groups=[unit], use_threads=False):
                if at >= start:
                    yield self._block(batch, unit, at)
                at += batch.num_rows


class Arrow(ColumnReader):
    """An Arrow file, or an Arrow stream as ``datasets`` saves it; its units are record batches.

    Args:
        file: its path.
        name: what addresses begin with.

    Raises:
        ValueError: if it is neither, is cut off, or has columns of the dictionary type.
    """

    def __init__(self, file: Path, name: str) -> None:
        self.file = file
        with named(f"{file}: not an Arrow file"), pa.memory_map(str(file)) as content:
            self.is_stream = content.read(6) != b"ARROW1"
            content.seek(0)
            self.offsets = _message_offsets(file, content) if self.is_stream else []
            sizes = [(batch.num_rows, batch.nbytes) for batch in self._batches(content)]
        super().__init__(file, name, [rows for rows, _ in sizes], [size for _, size in sizes])

    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield blocks of a batch."""
        self.check_unchanged()
        # Not mapped into memory: rows that are held would each hold a mapping.
        with named(f"{self.file}: record batch {unit} is broken"), pa.OSFile(str(self.file)) as content:
            (batch,) = self._batches(content, unit)
            for start in range(place or 0, batch.num_rows, self.block_rows[unit]):
                yield self._block(batch.slice(start, self.block_rows[unit]), unit, start)

    def _batches(self, content: pa.NativeFile, unit: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the batch of one unit, or all of them."""
        if not self.is_stream:
            opened = pa.ipc.open_file(content)
            units = range(opened.num_record_batches) if unit is None else [unit]
            yield from (opened.get_batch(one) for one in units)
            return
        content.seek(0)
        schema = pa.ipc.read_schema(content)
        for offset in self.offsets if unit is None else [self.offsets[unit]]:
            content.seek(offset)
            yield pa.ipc.read_record_batch(pa.ipc.read_message(content), schema)


def _message_offsets(file: Path, content: pa.NativeFile) -> list[int]:
    """Where the record batches of a stream begin. Looks at headers alone."""
    pa.ipc.read_schema(content)
    offsets: list[int] = []
    while True:
        offset = content.tell()
        try:
            message = pa.ipc.read_message(content)
        except EOFError:
            return offsets
        if message.type != "record batch":
            raise ValueError(f"{file}: columns of the dictionary type cannot be read from a stream; save it as Parquet")
        offsets.append(offset)


@contextmanager
def named(where: str) -> Iterator[None]:
    """Say which file, and which part of it, Arrow complains about.

    Raises:
        ValueError: instead of Arrow's own errors.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where}: {error}") from None
