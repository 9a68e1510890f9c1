"""Where rows come from: files of text and tables, folders of them, the Hugging Face hub, or memory.

Nothing is read whole. Each row has an *address* for messages and caches: ``file.jsonl:17`` is line 17, counted from 1
as editors do, and in every other kind of file and in memory row 17. Lines of JSON Lines files above 1 GiB are not
counted; their addresses are ``file.jsonl@4096``, the byte that the row begins at.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datamodules.dataset_info import read_dataset_info
from datamodules.options import Source
from datamodules.readers.blocks import Block, Place, Reader, Undecoded
from datamodules.readers.finding import find_files, shown
from datamodules.readers.memory import Indexed, Streamed
from datamodules.readers.opening import open_file
from datamodules.records import BadRowError, Layout

if TYPE_CHECKING:
    from datasets import IterableDataset

# Part of every fingerprint: raise it when the same seed gives another order of rows than before.
ORDER_VERSION = 2


class Row(NamedTuple):
    """One row as it was found.

    Args:
        address: where it stands, such as ``train.jsonl:17``.
        source: name of its source.
        data: the row; or what nobody has looked at yet: the bytes of a line of JSON, or an ``Undecoded``.
        layout: how its source departs from the usual names.
    """

    address: str
    source: str
    data: Any
    layout: Layout = Layout()

    def decode(self) -> object:
        """Return the row as Python values.

        Raises:
            BadRowError: if it cannot be read, such as a line that is not UTF-8 or not JSON.
        """
        if isinstance(self.data, Undecoded):
            return self.data.decode()
        if not isinstance(self.data, bytes):
            return self.data
        try:
            return json.loads(self.data.decode())
        except UnicodeDecodeError as error:
            message = f"line is not UTF-8 (byte {error.start}); save the file as UTF-8"
            raise BadRowError("bad_encoding", message) from None
        except json.JSONDecodeError as error:
            raise BadRowError("broken_json", f"line is not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            raise BadRowError("broken_json", f"line cannot be read: {error}") from None


class OpenSource:
    """A source whose files have been found: its units can be read in any order, and counted.

    The units of its readers are numbered through.

    Args:
        source: what the user asked for.
        split: default split of a hub data set.
        rows: the rows themselves: a sequence of them, or a stream of the ``datasets`` library.

    Raises:
        ValueError: if nothing is there, a file is of an unknown type, or a number makes no sense.
    """

    def __init__(self, source: Source, split: str = "train", rows: Any = None) -> None:
        if not 0 < source.weight < float("inf"):
            raise ValueError(f"source {source.path!r} has weight {source.weight}; a weight is a number above 0")
        if source.limit is not None and source.limit < 1:
            raise ValueError(f"source {source.path!r} has limit {source.limit}; a limit is at least 1")
        self.source = replace(source, split=source.split or split)
        self.weight = source.weight
        self.name = source.name or shown(source.path)
        self.layout = Layout(source.columns, source.tags)
        self.readers = self._readers(rows)
        self._units_before = list(accumulate((reader.num_units for reader in self.readers), initial=0))

    @cached_property
    def num_rows(self) -> int | None:
        """Rows in the source; None if it does not say. Counts text files once, without keeping anything."""
        counts = [self.counts(unit) for unit in range(self.num_units)]
        if None not in counts:
            return sum(sum(blocks) for blocks in counts if blocks is not None)
        known = [reader.count() for reader in self.readers if isinstance(reader, Streamed)]
        num_rows = None if None in known else sum(filter(None, known))
        return num_rows if self.source.limit is None or num_rows is None else min(num_rows, self.source.limit)

    @property
    def num_units(self) -> int:
        """Units that rows are read from."""
        return self._end[0]

    @property
    def fingerprint(self) -> list[Any]:
        """What must not change between a checkpoint and its resumption: files, their content roughly, weight, rest."""
        source = self.source
        content = [reader.fingerprint for reader in self.readers]
        place = [source.path, source.config, source.split, source.revision] if content == [[]] else []
        names = [dict(source.columns), dict(source.tags)]
        return [source.name, self.weight, *place, *content, source.limit, *names, f"order {ORDER_VERSION}"]

    def blocks(self, unit: int, place: Place = None, done: int = 0) -> Iterator[Block]:
        """Yield the blocks of a unit, from a place on.

        Args:
            unit: number of the unit.
            place: where to begin in it.
            done: rows of the unit that lie before ``place``.
        """
        reader, own = self._reader(unit)
        num_units, last_rows = self._end
        blocks = (block._replace(folder=reader.folder) for block in reader.blocks(own, place))
        if unit < num_units - 1 or last_rows is None:
            yield from blocks
            return
        while done < last_rows and (block := next(blocks, None)):
            yield block._replace(rows=block.rows[: last_rows - done])
            done += len(block.rows)

    def counts(self, unit: int) -> Iterator[int] | None:
        """Yield the number of rows of each block of a unit; None if only reading everything would tell."""
        reader, own = self._reader(unit)
        counts = reader.counts(own)
        num_units, last_rows = self._end
        return counts if counts is None or unit < num_units - 1 or last_rows is None else _first(counts, last_rows)

    def size(self, unit: int, place: Place = None) -> float | None:
        """Blocks that are left of a unit at a place, roughly; None if nobody knows."""
        reader, own = self._reader(unit)
        return reader.size(own, place)

    def read(self) -> Iterator[Row]:
        """Yield every row in file order."""
        for unit in range(self.num_units):
            for block in self.blocks(unit):
                yield from self.rows(block)

    def rows(self, block: Block) -> list[Row]:
        """The rows of a block."""
        layout = self.layout._replace(folder=block.folder)
        return [Row(address, self.name, data, layout) for address, data in block.rows]

    def _reader(self, unit: int) -> tuple[Reader, int]:
        """The reader that a unit belongs to, and its number there."""
        number = bisect_right(self._units_before, unit) - 1
        return self.readers[number], unit - self._units_before[number]

    @cached_property
    def _end(self) -> tuple[int, int | None]:
        """Units to read, and how many rows of the last one; None for all."""
        num_units, left = self._units_before[-1], self.source.limit
        if left is None or num_units <= 1:
            return num_units, left
        for unit in range(num_units):
            reader, own = self._reader(unit)
            num_rows = sum(_first(reader.counts(own) or iter(()), left))
            if num_rows == left:
                return unit + 1, left
            left -= num_rows
        return num_units, None

    def _readers(self, rows: Any) -> list[Reader]:
        if rows is not None and isinstance(rows, Sized):
            return [Indexed(rows, self.name)]  # type: ignore[arg-type]
        if rows is not None:
            return [Streamed(partial(_same, rows), self.name, False, partial(_same, None))]
        files = find_files(self.source.path, self.source.split or "train")
        if not files:
            return [Streamed(self._hub, self.name, True, self._count_hub)]
        return [open_file(file, shown(file)) for file in files]

    def _hub(self) -> IterableDataset:
        """Open the data set as a stream: nothing but the rows that are read is downloaded."""
        from datasets import load_dataset

        source = self.source
        options = {"split": source.split, "revision": source.revision, "streaming": True}
        try:
            return load_dataset(source.path, source.config, **options)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source.path!r} is no file here, and the hub does not give it: {error}") from None

    def _count_hub(self) -> int | None:
        if "num_hub_rows" not in self.__dict__:
            splits = self._hub().info.splits or {}
            self.num_hub_rows = splits[self.source.split].num_examples if self.source.split in splits else None
        return self.num_hub_rows


def open_sources(like: Any, split: str) -> list[OpenSource]:
    """Find what ``like`` names.

    Args:
        like: a path, a :class:`Source`, rows (a list of mappings or a data set of the ``datasets`` library), a list of
            any of these, or a mapping from splits to any of these.
        split: ``train``, ``validation``, ``test`` or ``predict``: default split on the hub and name of rows in memory.

    Raises:
        ValueError: if it names nothing, a missing file, or one that cannot be read or is of an unknown type.
    """
    if isinstance(like, Mapping):
        if split not in like:
            raise ValueError(f"data.{split}: the data sets given have no split {split!r}, but {', '.join(like)}")
        like = like[split]
    several = like if isinstance(like, list) else [like]
    if not several:
        raise ValueError(f"data.{split} is empty; give a path, a hub name, a list of sources or a list of rows")
    if isinstance(several[0], Mapping):
        several = [several]
    in_memory = [one for one in several if not isinstance(one, str | Path | Source)]
    names = [split if len(in_memory) == 1 else f"{split}[{number}]" for number in range(len(several))]
    try:
        return [opened for name, one in zip(names, several, strict=True) for opened in _open(one, split, name)]
    except (OSError, ValueError) as error:  # such as a file that may not be read, or a text taken for a path
        raise ValueError(f"data.{split}: {error}") from None


def find_row(address: str, sources: Iterable[OpenSource]) -> Row:
    """Read one row by its address.

    Raises:
        ValueError: if no source has it.
    """
    names = []
    for source in sources:
        for reader in source.readers:
            names.append(reader.name)
            key = address.removeprefix(reader.name)
            if key != address and key[:1] in (":", "@") and key[1:].isdecimal() and int(key[1:]) >= (key[0] == ":"):
                layout = source.layout._replace(folder=reader.folder)
                return Row(address, source.name, reader.find(address), layout)
    raise ValueError(f"no source has the row {address!r}; addresses begin with {', '.join(map(repr, names))}")


def _open(one: Any, split: str, name: str) -> list[OpenSource]:
    """Open one element of what the user gave."""
    default = "test" if split == "predict" else split
    if isinstance(one, str | Path):
        one = Source(str(one))
    if isinstance(one, Source):
        return [OpenSource(source, default) for source in _expand(one)]
    is_stream = "datasets" in sys.modules and isinstance(one, sys.modules["datasets"].IterableDataset)
    if is_stream or (isinstance(one, Sized) and not isinstance(one, Mapping)):
        return [OpenSource(Source(name), rows=one)]
    raise ValueError(f"a {type(one).__name__} is no source; give paths, lists of rows or data sets of `datasets`")


def _expand(source: Source) -> list[Source]:
    """The sources that a LLaMA-Factory ``dataset_info.json`` lists; any other source alone."""
    path, _, names = source.path.partition("#")
    if Path(path).name != "dataset_info.json":
        return [source]
    listed = read_dataset_info(Path(path).expanduser(), [name for name in names.split(",") if name])
    return [replace(one, weight=one.weight * source.weight) for one in listed]


def _first(counts: Iterator[int], limit: int) -> Iterator[int]:
    """Counts of blocks whose rows end after ``limit``."""
    for num_rows in counts:
        yield min(num_rows, limit)
        limit -= min(num_rows, limit)
        if not limit:
            return


def _same(value: Any) -> Any:
    return value
