"""Where rows come from: JSON, Parquet, folders of them, the Hugging Face hub, or a list in memory.

Rows are read one after another and never all at once. Each has an *address* for messages and caches: ``file.jsonl:17``
is line 17, counted from 1 as editors do; in JSON arrays, Parquet files, hub data and lists, 17 counts rows from 1.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datamodules.records import BadRowError

if TYPE_CHECKING:
    from datasets import IterableDataset
    from pyarrow.parquet import ParquetFile

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_CHUNK = 1 << 20  # characters read at once from a JSON array


@dataclass(frozen=True)
class Source:
    """One place that rows come from.

    Args:
        path: a file (.jsonl, .json, either with .gz, or .parquet), a glob, a folder of such files, or a data set of the
            Hugging Face hub such as ``Anthropic/hh-rlhf``.
        weight: how many times each row is seen in an epoch: 2 shows every row twice, 0.25 a random quarter of the rows,
            drawn afresh for every epoch.
        name: what to call it in counts and messages; the file or hub name unless given.
        split: split of a hub data set; ``train``, ``validation`` or ``test`` after its use unless given.
        config: configuration of a hub data set.
        revision: branch, tag or commit of a hub data set.
        columns: names of this source's columns, by the names that the row forms are read by: ``{prompt: question}``.
        tags: names used inside conversations, by LLaMA-Factory's keys: ``{role_tag: speaker, user_tag: USER}``.
        limit: read only this many rows, from the first.
    """

    path: str
    weight: float = 1.0
    name: str | None = None
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    limit: int | None = None


# What a user may write where rows are wanted.
SourceLike = str | Path | Source | list[str | Source] | list[dict[str, Any]]


class Row(NamedTuple):
    """One row as it was read.

    Args:
        address: where it stands, such as ``train.jsonl:17``.
        source: name of its source.
        data: the row, or the bytes of a line of JSON that nobody has looked at yet.
    """

    address: str
    source: str
    data: Any

    def decode(self) -> object:
        """Return the row as Python values.

        Raises:
            BadRowError: if the line is not UTF-8 or not JSON.
        """
        if not isinstance(self.data, bytes):
            return self.data
        try:
            return json.loads(self.data.decode())
        except UnicodeDecodeError as error:
            raise BadRowError(
                "bad_encoding", f"line is not UTF-8 (byte {error.start}); save the file as UTF-8"
            ) from None
        except json.JSONDecodeError as error:
            raise BadRowError("broken_json", f"line is not JSON: {error.msg} at column {error.colno}") from None


class OpenSource:
    """A source whose files have been found: it can be counted, and read any number of times.

    Args:
        source: what the user asked for.
        split: default split of a hub data set.
        rows: the rows themselves, for a list in memory.

    Raises:
        ValueError: if nothing is there, or a file is of an unknown type.
    """

    def __init__(self, source: Source, split: str = "train", rows: Sequence[Mapping[str, Any]] | None = None) -> None:
        if not 0 < source.weight < float("inf"):
            raise ValueError(f"source {source.path!r} has weight {source.weight}; a weight is a number above 0")
        self.rows = rows
        self.files = () if rows is not None else find_files(source.path)
        self.source = replace(source, split=source.split or split)
        self.weight = source.weight
        self.name = source.name or shown(source.path)

    @cached_property
    def num_rows(self) -> int | None:
        """Rows in the source; None if a hub data set does not say. Reads text files once, without parsing them."""
        if self.rows is not None:
            return len(self.rows)
        if self.files:
            return sum(map(count_rows, self.files))
        splits = self._hub().info.splits
        return splits[self.source.split].num_examples if splits and self.source.split in splits else None

    @property
    def fingerprint(self) -> list[Any]:
        """What must not change between a checkpoint and its resumption: files, sizes, weight."""
        if self.rows is not None:
            content: Any = zlib.crc32(repr(self.rows[:1]).encode() + repr(self.rows[-1:]).encode())
            return [self.source.name, self.weight, len(self.rows), content]
        files = [[file.name, file.stat().st_size] for file in self.files]
        source = self.source
        return [source.name, self.weight, *(files or [[source.path, source.config, source.split, source.revision]])]

    def read(self) -> Iterator[Row]:
        """Yield every row in order."""
        if self.rows is not None:
            numbered = enumerate(self.rows, start=1)
        elif self.files:
            for file in self.files:
                yield from (Row(f"{shown(file)}:{number}", self.name, data) for number, data in read_file(file))
            return
        else:
            numbered = enumerate(self._hub(), start=1)
        yield from (Row(f"{self.name}:{number}", self.name, data) for number, data in numbered)

    def _hub(self) -> IterableDataset:
        """Open the data set as a stream: nothing but the rows that are read is downloaded."""
        from datasets import load_dataset

        source = self.source
        return load_dataset(source.path, source.config, split=source.split, revision=source.revision, streaming=True)


def open_sources(like: SourceLike, split: str) -> list[OpenSource]:
    """Find what ``like`` names.

    Args:
        like: a path, a :class:`Source`, a list of these, or a list of rows.
        split: ``train``, ``validation``, ``test`` or ``predict``: default split on the hub and name of rows in memory.

    Raises:
        ValueError: if it names nothing, a missing file, or a file of an unknown type.
    """
    several: list[Any] = like if isinstance(like, list) else [like]
    if not several:
        raise ValueError(f"data.{split} is empty; give a path, a hub name, a list of sources or a list of rows")
    if isinstance(several[0], Mapping):
        return [OpenSource(Source(split), rows=several)]
    sources = [one if isinstance(one, Source) else Source(str(one)) for one in several]
    try:
        return [OpenSource(source, "test" if split == "predict" else split) for source in sources]
    except ValueError as error:
        raise ValueError(f"data.{split}: {error}") from None


def shown(path: str | Path) -> str:
    """What a path is called in addresses and names: seen from the working directory where it lies in it.

    The whole path and not the file's name alone, because the files of two folders are often called alike.
    """
    place = Path(path)
    return str(place.relative_to(Path.cwd())) if place.is_absolute() and place.is_relative_to(Path.cwd()) else str(path)


def find_files(path: str) -> tuple[Path, ...]:
    """Files that ``path`` names, sorted; none if it is the name of a hub data set.

    Raises:
        ValueError: if there is no such file, the folder holds no data, or the type is unknown.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.name.endswith(SUFFIXES))
    elif place.is_file():
        files = [place]
    elif glob.has_magic(path):
        files = sorted(map(Path, glob.glob(str(place), recursive=True)))
    elif not path.endswith(SUFFIXES) and path.count("/") == 1 and not place.parent.is_dir():
        return ()
    else:
        siblings = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
        near = difflib.get_close_matches(place.name, siblings, n=1)
        hint = (
            f"did you mean {str(place.parent / near[0])!r}?" if near else f"looked in {str(place.parent.absolute())!r}"
        )
        raise ValueError(f"no file {path!r}; {hint}")
    if not files:
        raise ValueError(f"{path!r} holds no data file; known types are {', '.join(SUFFIXES)}")
    for file in files:
        if not file.name.endswith(SUFFIXES):
            raise ValueError(f"{str(file)!r} is of an unknown type; known types are {', '.join(SUFFIXES)}")
    return tuple(files)


def count_rows(file: Path) -> int:
    """Count the rows of a file."""
    if file.suffix == ".parquet":
        return int(_open_parquet(file).metadata.num_rows)
    return sum(1 for _ in read_file(file))


def read_file(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, row) of a file; a line of JSON as its bytes.

    Raises:
        ValueError: if the file as a whole is broken, named with the place.
    """
    if file.suffix == ".parquet":
        batches = _open_parquet(file).iter_batches(batch_size=256)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
        return
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rb") as stream:
        try:
            yield from _read_json(file, stream)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{file}: the compressed file is broken: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: the JSON array is not UTF-8 ({error.reason}); save the file as UTF-8") from None


def _read_json(file: Path, stream: io.BufferedIOBase) -> Iterator[tuple[int, Any]]:
    opening = stream.read(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
    stream.seek(0)
    if opening.startswith(b"["):
        yield from enumerate(_read_array(file, stream), start=1)
        return
    for number, line in enumerate(stream, start=1):
        text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
        if text:
            yield number, text


def _read_array(file: Path, stream: io.BufferedIOBase) -> Iterator[Any]:
    """Yield the elements of one JSON array, holding one chunk and one element at a time."""
    text = codecs.getreader("utf-8-sig")(stream)
    decode = json.JSONDecoder().raw_decode
    held, at, number = text.read(_CHUNK).lstrip()[1:], 0, 1
    while True:
        while at < len(held) and held[at] in " \t\r\n,":
            at += 1
        if held.startswith("]", at):
            return
        try:
            row, at = decode(held, at)
        except json.JSONDecodeError as error:
            more = text.read(_CHUNK)
            if not more:
                message = f"{file}:{number}: the JSON array breaks off or is not JSON: {error.msg}"
                raise ValueError(message) from None
            held, at = held[at:] + more, 0
        else:
            yield row
            number += 1


def _open_parquet(file: Path) -> ParquetFile:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except ArrowInvalid as error:
        raise ValueError(f"{file}: not a Parquet file: {error}") from None


def take(rows: Iterator[Row], num_rows: int) -> list[Row]:
    """Take the next ``num_rows`` rows, fewer at the end."""
    return list(itertools.islice(rows, num_rows))
