"""Every test works in a folder of its own, so that addresses are short. Rows can be written as any kind of file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[Any], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(rows[0] if rows else ["a"])
    writer.writerows(row.values() for row in rows)
    return text.getvalue().encode()


def parquet(rows: list[Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content, row_group_size=7)
    return content.getvalue()


def arrow(rows: list[Any], new: str = "new_stream") -> bytes:
    import pyarrow

    content = io.BytesIO()
    whole = pyarrow.Table.from_pylist(rows)
    with getattr(pyarrow.ipc, new)(content, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=7)
    return content.getvalue()


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "lines.jsonl": lines,
    "lines.ndjson": lines,
    "lines.json": lines,
    "crlf.jsonl": lambda rows: lines(rows).replace(b"\n", b"\r\n"),
    "blank.jsonl": lambda rows: b"\n \n" + lines(rows).replace(b"\n", b"\n\n\t\n"),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + lines(rows),
    "open_end.jsonl": lambda rows: lines(rows).rstrip(b"\n"),
    "packed.jsonl.gz": lambda rows: gzip.compress(lines(rows), 1),
    "members.jsonl.gz": lambda rows: gzip.compress(lines(rows[:3])) + gzip.compress(lines(rows[3:])),
    "array.json": lambda rows: json.dumps(rows).encode(),
    "indented.json": lambda rows: b"\xef\xbb\xbf\n " + json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "array.jsonl": lambda rows: json.dumps(rows).encode(),
    "array.json.gz": lambda rows: gzip.compress(json.dumps(rows, indent=1).encode()),
    "inside.json": lambda rows: json.dumps({"version": [1, {"a": 2}], "data": rows, "end": 3}).encode(),
    "spread.json": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
    "table.csv": table,
    "table.tsv": lambda rows: table(rows, "\t"),
    "semicolons.csv": lambda rows: b"\xef\xbb\xbf" + table(rows, ";"),
    "table.csv.gz": lambda rows: gzip.compress(table(rows)),
    "groups.parquet": parquet,
    "stream.arrow": arrow,
    "file.arrow": lambda rows: arrow(rows, "new_file"),
}


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, list[Any]], Path]:
    """Write rows as the kind of file that a name of ``WRITERS`` says."""

    def write(name: str, rows: list[Any]) -> Path:
        path = tmp_path / name
        path.write_bytes(WRITERS[name](rows))
        return path

    return write


@pytest.fixture(params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of file in turn."""
    return str(request.param)
