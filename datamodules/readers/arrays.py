"""JSON that is not one row per line: an array of rows, an object that holds such an array, or rows that span lines."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.readers.blocks import BLOCK_BYTES, Block, Broken, Place, in_blocks
from datamodules.readers.files import SequentialReader, open_at

# Keys under which an object at the top of a file holds the rows. A list under any other key belongs to a row.
CONTAINERS = ("data", "rows", "examples", "instances", "samples", "records", "items", "entries")

_DECODE = json.JSONDecoder().raw_decode
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_CLOSED = re.compile(r"[ \t\r\n]*(,[ \t\r\n]*\"|})")  # what follows an array inside an object
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_AFTER = re.compile(r"[ \t\r\n]*([],{]?)")  # what may follow a row
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[][{},]', re.DOTALL)  # a string's brackets are none
_BEHIND_STRING = re.compile(r"[ \t\r\n]*(?:[]:,}]|\Z)")
_CLOSING = {"[": "]", "{": "}"}
_MAX_BROKEN = 1 << 26  # characters in which the end of a broken row is looked for
_NOT_UTF8 = Broken("bad_encoding", "the row is not UTF-8; save the file as UTF-8")


class Values(SequentialReader):
    """JSON values one after another. A place is the offset of the next one and the values before it.

    Args:
        file: its path.
        name: what addresses begin with.
        start: offset of the first value, behind the bracket that opens the array.
        is_array: whether a bracket closes the values; else they end with the file.
    """

    def __init__(self, file: Path, name: str, start: int, is_array: bool) -> None:
        super().__init__(file, name)
        self.start = start
        self.is_array = is_array

    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield blocks from front to back, holding one chunk and one value at a time."""
        self.check_unchanged()
        offset, number = place or (self.start, 0)
        with open_at(self.file, offset) as stream:
            yield from in_blocks(self._rows(stream, offset, number))

    def _rows(self, stream: BinaryIO, offset: int, number: int) -> Iterator[tuple[str, Any, int, Place]]:
        text = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        held, at, is_end, chunk = "", 0, False, BLOCK_BYTES
        while True:
            between = len(_BETWEEN.match(held, at)[0])  # type: ignore[index]
            at, offset = at + between, offset + between
            if is_end and at == len(held) and not self.is_array:
                return
            if held.startswith("]", at):
                self._check_end(held[at + 1 :] + text.decode(stream.read(BLOCK_BYTES)), number)
                return
            row, end = self._value(held, at, is_end, number)
            if end:
                number += 1
                size = _num_bytes(held[at:end])
                at, offset, chunk = end, offset + abs(size), BLOCK_BYTES
                yield f"{self.name}:{number}", row if size > 0 else _NOT_UTF8, abs(size), [offset, number]
            else:
                more = stream.read(chunk)
                is_end = not more
                held, at = held[at:] + text.decode(more, final=is_end), 0
                chunk *= 2  # so that a huge value is tried a few times, not once per chunk

    def _value(self, held: str, at: int, is_end: bool, number: int) -> tuple[Any, int]:
        """The value that begins at ``at`` and where it ends; 0 if more text is needed to tell."""
        try:
            row, end = _DECODE(held, at)
        except json.JSONDecodeError as error:
            is_cut = error.msg.startswith("Unterminated string") or len(held) - error.pos < 16
            if is_cut and not is_end:
                return None, 0
            return self._broken(held, at, is_end, number, error.msg)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            return self._broken(held, at, is_end, number, str(error))
        # Whether a number goes on, as "1" does in "1.5e+9", shows a few characters behind it.
        return (row, end) if len(held) - end > 3 or is_end else (None, 0)

    def _check_end(self, rest: str, number: int) -> None:
        """Refuse a file in which more stands behind the array: rows that nobody would miss.

        Raises:
            ValueError: if something other than the rest of an object around the array follows.
        """
        if rest.strip() and not _CLOSED.match(rest):
            after = f"{self.name}: the array of rows ends after row {number}"
            raise ValueError(f"{after}, but more follows: {rest.strip()[:40]!r}; give one array, or a row per line")

    def _broken(self, held: str, at: int, is_end: bool, number: int, error: str) -> tuple[Any, int]:
        """A broken value and where it ends; 0 if more text is needed to tell.

        Raises:
            ValueError: if its brackets do not tell, so that all that follows is lost too.
        """
        end = _closed(held, at, is_end)
        if end > 0:
            return Broken("broken_json", f"the row is not JSON: {error}"), end
        if end == 0 and not is_end and len(held) - at < _MAX_BROKEN:
            return None, 0
        raise ValueError(
            f"{self.name}:{number + 1}: the JSON array breaks off or is not JSON: {error}; its brackets and quotes do "
            "not tell where the next row begins, so nothing after it can be read"
        )


def _closed(text: str, at: int, is_end: bool) -> int:
    """Where a broken value ends, by its brackets and quotes alone; 0 if more text may tell, -1 if none will."""
    closing: list[str] = []
    for found in _BRACKET.finditer(text, at):
        mark = found[0]
        if mark in _CLOSING:
            closing.append(_CLOSING[mark])
        elif not closing and mark in ",]":
            return found.start()
        elif mark[0] == '"' and not _BEHIND_STRING.match(text, found.end()):
            return -1  # a quote too many or too few: inside and outside are no longer known
        elif mark in "]}":
            if not closing or mark != closing.pop():
                return -1
            if not closing:
                follows = _AFTER.match(text, found.end())[1]  # type: ignore[index]
                return found.end() if follows or (is_end and found.end() == len(text)) else 0
    return 0


def _num_bytes(text: str) -> int:
    """Bytes of a text; negative if they are no UTF-8."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -len(text.encode(errors="surrogateescape"))


def find_values(opening: bytes, is_lines: bool) -> tuple[int, bool] | None:
    r"""Say where the values of a JSON file begin, and whether they are in an array; None if each line is a row.

    Args:
        opening: the first bytes of the file.
        is_lines: whether the file's name says that it holds lines; then only an array is believed to be something else.

    Example:
        >>> find_values(b'[{"a": 1}]', False), find_values(b'{"data": [{"a": 1}]}', False)
        ((1, True), (10, True))
        >>> find_values(b'{"a": 1}', False), find_values(b'{\n  "a": 1\n}', False)
        (None, (0, False))
    """
    mark = len(codecs.BOM_UTF8) if opening.startswith(codecs.BOM_UTF8) else 0
    text = opening[mark:].decode(errors="surrogateescape")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    line, _, rest = text[start:].partition("\n")
    is_row = _is_json(line)
    if text.startswith("[", start) and not (is_row and rest.strip()):
        return mark + start + 1, True
    if is_lines or not text.startswith("{", start) or (is_row and rest.strip()):
        return None
    if inside := _container(text, start + 1):
        return mark + len(text[:inside].encode(errors="surrogateescape")), True
    # One line alone, or a second line that begins like the first: rows in lines, of which the first is broken.
    return None if is_row or not rest or rest.startswith("{") else (mark + start, False)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _container(text: str, at: int) -> int:
    """Where the rows begin in an object that holds them, just behind its opening brace; 0 if it does not."""
    try:
        while text.startswith('"', at := _BETWEEN.match(text, at).end()):  # type: ignore[union-attr]
            key, at = _DECODE(text, at)
            colon = _COLON.match(text, at)
            if colon is None:
                return 0
            at = colon.end()
            if key in CONTAINERS and text.startswith("[", at):
                return at + 1
            at = _DECODE(text, at)[1]
    except (ValueError, RecursionError):
        return 0
    return 0
