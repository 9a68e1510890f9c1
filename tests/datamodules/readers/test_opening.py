"""Every kind of file gives the same rows; from every place on, the same blocks; counts are exact; any row is found."""

from __future__ import annotations

import json

import pytest

from datamodules.readers import blocks, columns, files, lines, tables
from datamodules.readers.blocks import Undecoded
from datamodules.readers.opening import SUFFIXES, open_file
from datamodules.sources import Row

ROWS = [{"id": f"r{n}", "text": "\u4f60 \"q\", 'q'\n; \U0001f600" * (n % 5), "tab": "a\tb"} for n in range(23)]


@pytest.fixture(params=[1, 100, 10_000])
def block_bytes(request, monkeypatch):
    """Blocks of one row, of a few, and of all."""
    for module in (blocks, files, lines, columns):
        monkeypatch.setattr(module, "BLOCK_BYTES", request.param)
    return request.param


def decoded(data):
    row = Row("", "", data).decode()
    return {key: value or "" for key, value in row.items()}


def rows_of(found):
    return [(address, decoded(data)) for block in found for address, data in block.rows]


def all_blocks(reader):
    return [(unit, block) for unit in range(reader.num_units) for block in reader.blocks(unit)]


def test_every_kind(write_rows, kind, block_bytes):
    reader = open_file(write_rows(kind, ROWS), "here")
    found = all_blocks(reader)
    rows = rows_of(block for _, block in found)
    assert [row for _, row in rows] == ROWS
    numbers = [int(address.removeprefix("here:")) for address, _ in rows]
    assert numbers == (list(range(3, 72, 3)) if kind == "blank.jsonl" else list(range(1, 24)))
    for unit in range(reader.num_units):
        own = [block for at, block in found if at == unit]
        assert list(reader.counts(unit)) == [len(block.rows) for block in own]
        for number, block in enumerate(own):
            place = json.loads(json.dumps(block.place))
            assert rows_of(reader.blocks(unit, place)) == rows_of(own[number + 1 :])
            assert 0 <= reader.size(unit, place) <= reader.size(unit)
    if block_bytes == 1 and kind != "packed.jsonl.gz":
        assert all(len(block.rows) == 1 for _, block in found)
    for address, row in rows:
        assert decoded(reader.find(address)) == row
    for nobody in ("here:500", "here:0") if kind != "blank.jsonl" else ("here:500", "here:4"):
        with pytest.raises(ValueError, match=f"there is no row '{nobody}'"):
            reader.find(nobody)


def test_no_rows(write_rows, kind):
    if kind not in ("groups.parquet", "stream.arrow", "file.arrow"):
        reader = open_file(write_rows(kind, []), "here")
        assert all_blocks(reader) == []
        assert sum(sum(reader.counts(unit)) for unit in range(reader.num_units)) == 0


def test_an_empty_file(tmp_path):
    for suffix in SUFFIXES:
        path = tmp_path / f"a{suffix}"
        path.touch()
        if suffix in (".parquet", ".arrow"):
            with pytest.raises(ValueError, match=r"a\.(parquet|arrow): not an? (Parquet|Arrow) file"):
                open_file(path, "a")
        else:
            assert all_blocks(open_file(path, "a")) == []


def test_rows_are_not_decoded_before_they_are_asked_for(write_rows):
    for kind in ("table.csv", "groups.parquet", "stream.arrow", "lines.jsonl"):
        (_, block), *_ = all_blocks(open_file(write_rows(kind, ROWS), "here"))
        assert all(isinstance(data, bytes | Undecoded) for _, data in block.rows)


def test_a_cell_may_be_long():
    assert tables.csv.field_size_limit() > 1 << 20


@pytest.mark.parametrize("kind", ["lines.jsonl", "packed.jsonl.gz", "array.json", "table.csv", "stream.arrow"])
def test_a_file_that_grows_is_refused(write_rows, kind):
    path = write_rows(kind, ROWS)
    reader = open_file(path, "here")
    with path.open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(ValueError, match=rf"{kind} changed while it was read: it had \d+ bytes, now \d+"):
        all_blocks(reader)
