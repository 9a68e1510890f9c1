"""Which reader reads which file. Enter a new kind of file in ``_OPENERS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datamodules.readers.arrays import Values, find_values
from datamodules.readers.blocks import Reader
from datamodules.readers.files import opening_of
from datamodules.readers.lines import CompressedLines, Lines
from datamodules.readers.tables import Table

_OPENING = 1 << 20  # bytes that tell an array from lines


def open_json(file: Path, name: str) -> Reader:
    """Open JSON in any arrangement: lines, an array, an object with an array, values that span lines."""
    kind = file.name.removesuffix(".gz")
    found = find_values(opening_of(file, _OPENING), is_lines=not kind.endswith(".json"))
    if found is not None:
        return Values(file, name, *found)
    return CompressedLines(file, name) if file.suffix == ".gz" else Lines(file, name)


def open_table(file: Path, name: str) -> Reader:
    """Open CSV or TSV. A table without a comma in its header is what spreadsheets write where commas mark decimals."""
    header = opening_of(file, _OPENING).partition(b"\n")[0]
    usual = "\t" if file.name.endswith((".tsv", ".tsv.gz")) else ","
    return Table(file, name, ";" if b";" in header and usual.encode() not in header else usual)


def open_parquet(file: Path, name: str) -> Reader:
    """Open Parquet."""
    from datamodules.readers.columns import Parquet  # pyarrow takes a second to import

    return Parquet(file, name)


def open_arrow(file: Path, name: str) -> Reader:
    """Open an Arrow file or stream."""
    from datamodules.readers.columns import Arrow

    return Arrow(file, name)


_OPENERS: dict[str, Callable[[Path, str], Reader]] = {
    ".jsonl": open_json,
    ".ndjson": open_json,
    ".json": open_json,
    ".csv": open_table,
    ".tsv": open_table,
    ".parquet": open_parquet,
    ".arrow": open_arrow,
}
_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*_OPENERS, *(f"{suffix}.gz" for suffix in _TEXT))


def open_file(file: Path, name: str) -> Reader:
    """Open a file of a known type.

    Args:
        file: its path, which ends in one of ``SUFFIXES``.
        name: what addresses begin with.

    Raises:
        ValueError: if it is broken in a way that shows at once.
    """
    return _OPENERS[Path(file.name.removesuffix(".gz")).suffix](file, name)
