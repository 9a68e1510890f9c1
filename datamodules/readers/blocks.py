"""What a reader is.

A reader has *units*, pieces that can be opened by themselves and so be read in any order: byte ranges of a file of
lines, row groups of a Parquet file, a whole compressed file. A unit gives *blocks*: a few rows that lie one after
another, and the *place* from which the unit goes on. A place is plain JSON, so that a checkpoint holds it as it is.

To read a new kind of file: write a :class:`Reader`, and enter its suffix in ``readers/opening.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from datamodules.records import BadRowError

# Small, so that a shuffle buffer of some thousand rows is filled from many ends of a file.
BLOCK_BYTES = 1 << 16
BLOCK_ROWS = 256  # of tables, whose rows know no size

Place = Any  # plain JSON; None is the beginning of a unit


class Block(NamedTuple):
    """Rows that lie one after another.

    Args:
        rows: (address, data) of each.
        place: where the unit goes on after them.
        num_bytes: memory that they take, roughly.
        folder: of the file that they lie in; empty where no file of ours holds them.
    """

    rows: list[tuple[str, Any]]
    place: Place
    num_bytes: int
    folder: str = ""


class Undecoded(ABC):
    """A row that was found but not looked at: only the process that wants it pays for decoding it."""

    __slots__ = ()

    @abstractmethod
    def decode(self) -> object:
        """Return the row as Python values.

        Raises:
            BadRowError: if it is broken.
        """


class Broken(Undecoded):
    """A row that was found and cannot be read.

    Args:
        reason: one word for counting.
        message: what is wrong and what would be right.
    """

    __slots__ = ("message", "reason")

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        self.message = message

    def decode(self) -> object:
        """Refuse it.

        Raises:
            BadRowError: always.
        """
        raise BadRowError(self.reason, self.message)


class Reader(ABC):
    """Rows of one file or table.

    Args:
        name: what addresses begin with.
        num_units: pieces that can be opened by themselves.
        folder: of the file; empty where there is none.
    """

    def __init__(self, name: str, num_units: int, folder: str = "") -> None:
        self.name = name
        self.num_units = num_units
        self.folder = folder

    @property
    @abstractmethod
    def fingerprint(self) -> list[Any]:
        """What must not change between a checkpoint and its resumption."""

    @abstractmethod
    def blocks(self, unit: int, place: Place = None) -> Iterator[Block]:
        """Yield the blocks of a unit, from ``place`` on. The same ones wherever it begins.

        Raises:
            ValueError: if the file is broken, named with the place.
        """

    @abstractmethod
    def size(self, unit: int, place: Place = None) -> float | None:
        """Blocks that are left of a unit at ``place``, roughly; None if nobody knows."""

    def counts(self, unit: int) -> Iterator[int] | None:
        """Yield the number of rows of each block of a unit; None if only reading everything would tell."""
        return (len(block.rows) for block in self.blocks(unit))

    def unit_of(self, key: str) -> int:
        """The unit that the row with this address lies in.

        Args:
            key: the address without the name: ``:17`` or ``@4096``.
        """
        return 0

    def find(self, address: str) -> Any:
        """The data of the row with this address.

        Raises:
            ValueError: if there is none.
        """
        unit = self.unit_of(address.removeprefix(self.name))
        rows = (row for block in self.blocks(unit) for row in block.rows) if 0 <= unit < self.num_units else iter(())
        found = next((data for name, data in rows if name == address), None)
        if found is None:
            raise ValueError(f"there is no row {address!r}; it is blank, or the data end before it")
        return found


def in_blocks(rows: Iterable[tuple[str, Any, int, Place]]) -> Iterator[Block]:
    """Gather rows into blocks, by their bytes alone, so that the bytes that are left tell the blocks that are left.

    Args:
        rows: address, data, bytes and place after each.
    """
    held: list[tuple[str, Any]] = []
    num_bytes, place = 0, None
    for address, data, size, place in rows:
        held.append((address, data))
        num_bytes += size
        if num_bytes >= BLOCK_BYTES:
            yield Block(held, place, num_bytes)
            held, num_bytes = [], 0
    if held:
        yield Block(held, place, num_bytes)
