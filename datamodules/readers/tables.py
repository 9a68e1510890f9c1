"""Tables of text: CSV and TSV, with a header line.

An empty cell is null, so that an absent value looks alike in every kind of file. A cell that holds a JSON list or
object is read as one, so that conversations survive a spreadsheet.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.readers.blocks import Block, Broken, Place, Undecoded, in_blocks
from datamodules.readers.files import SequentialReader, open_at
from datamodules.records import BadRowError

# The module's own limit of 128 KiB per cell is below a long document; ours stops a quote that is never closed.
csv.field_size_limit(1 << 26)


class Cells(Undecoded):
    """A row as its cells.

    Args:
        header: names of the columns.
        cells: texts.
    """

    __slots__ = ("cells", "header")

    def __init__(self, header: list[str], cells: list[str]) -> None:
        self.header = header
        self.cells = cells

    def decode(self) -> dict[str, Any]:
        """Return values by column.

        Raises:
            BadRowError: if there are more cells than columns, or bytes that are no UTF-8.
        """
        if len(self.cells) > len(self.header):
            message = f"the row has {len(self.cells)} cells, the header {len(self.header)}; quote cells with commas"
            raise BadRowError("broken_csv", message)
        try:
            "".join(self.cells).encode()
        except UnicodeEncodeError:
            raise BadRowError("bad_encoding", "the row is not UTF-8; save the file as UTF-8") from None
        missing = [""] * (len(self.header) - len(self.cells))
        return {name: _value(cell) for name, cell in zip(self.header, self.cells + missing, strict=True)}


class Table(SequentialReader):
    """Rows of a CSV or TSV file. A place is the offset of the next row and the rows before it.

    Args:
        file: its path.
        name: what addresses begin with.
        delimiter: what separates cells.
    """

    def __init__(self, file: Path, name: str, delimiter: str) -> None:
        super().__init__(file, name)
        self.delimiter = delimiter

    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield blocks from front to back; the header is read again wherever it begins."""
        self.check_unchanged()
        with open_at(self.file) as stream:
            header, start = self._header(stream)
        offset, number = place or (start, 0)
        with open_at(self.file, offset) as stream:
            yield from in_blocks(self._rows(stream, header, offset, number))

    def _header(self, stream: BinaryIO) -> tuple[list[str], int]:
        """Names of the columns, and the offset of the first row."""
        lines = _Lines(stream, 0)
        header = next((cells for cells in self._cells(lines, 0) if cells), [])
        if isinstance(header, Broken):
            raise ValueError(f"{self.file}: the header cannot be read: {header.message}")
        if twice := {name for name in header if header.count(name) > 1}:
            raise ValueError(f"{self.file}: the header has the column {min(twice)!r} twice; rename one")
        return header, lines.offset

    def _rows(
        self, stream: BinaryIO, header: list[str], offset: int, number: int
    ) -> Iterator[tuple[str, Any, int, Place]]:
        lines = _Lines(stream, offset)
        for cells in self._cells(lines, number):
            if cells:
                number += 1
                row = cells if isinstance(cells, Broken) else Cells(header, cells)
                yield f"{self.name}:{number}", row, lines.offset - offset, [lines.offset, number]
            offset = lines.offset

    def _cells(self, lines: _Lines, number: int) -> Iterator[list[str] | Broken]:
        """Yield the cells of each row, after ``number`` others; none of a blank line.

        A row with a quote in the wrong place ends with its line, if all of its quotes are closed there.

        Raises:
            ValueError: if a quote is not closed, so that all that follows is lost too.
        """
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            lines.num_quotes = 0
            try:
                cells = next(reader, None)
            except csv.Error as error:
                message = f"the table is broken: {error}"
                if lines.num_quotes % 2:
                    place = f"{self.name}:{number + 1}: before byte {lines.offset}"
                    raise ValueError(f"{place}: {message}; is a quote not closed?") from None
                number += 1
                yield Broken("broken_csv", f"{message}; double the quotes inside a cell, and put it in quotes")
            else:
                if cells is None:
                    return
                yield cells
                number += bool(cells)


class _Lines(Iterator[str]):
    """Lines of a stream as text, the offset behind the last one that was asked for, and how many quotes came by."""

    def __init__(self, stream: BinaryIO, offset: int) -> None:
        self.stream = stream
        self.offset = offset
        self.num_quotes = 0

    def __next__(self) -> str:
        line = self.stream.readline()
        if not line:
            raise StopIteration
        text = line.removeprefix(codecs.BOM_UTF8) if self.offset == 0 else line
        self.offset += len(line)
        self.num_quotes += line.count(b'"')
        return text.decode(errors="surrogateescape")


def _value(cell: str) -> Any:
    if not cell:
        return None
    if cell[0] in "[{":
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell
