"""Rows in memory and streams of the datasets library are read from any place."""

from __future__ import annotations

import json

import pytest

from datamodules.readers import memory
from datamodules.readers.memory import Indexed, Streamed

ROWS = [{"n": number} for number in range(50)]


def rows_of(blocks):
    return [
        (address, row.decode() if hasattr(row, "decode") else row) for block in blocks for address, row in block.rows
    ]


def test_indexed():
    reader = Indexed(ROWS, "a")
    assert reader.num_units == 4
    assert [len(list(reader.blocks(unit))) for unit in range(4)] == [1] * 4
    assert rows_of(reader.blocks(3)) == [("a:49", ROWS[48]), ("a:50", ROWS[49])]
    assert list(reader.blocks(3, 1)) == []
    assert [list(reader.counts(unit)) for unit in range(4)] == [[16], [16], [16], [2]]
    assert reader.find("a:17").decode() == {"n": 16}
    assert Indexed([], "a").num_units == 0
    assert Indexed([], "a").fingerprint != Indexed([{}], "a").fingerprint


@pytest.fixture(params=["memory", "parquet", "jsonl", "generator"])
def stream(request, tmp_path):
    """The same rows as a stream of several kinds; hub data sets are streams of files."""
    datasets = pytest.importorskip("datasets")
    if request.param == "memory":
        return lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3)
    if request.param == "generator":
        return lambda: datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    for number in range(2):
        part = datasets.Dataset.from_list(ROWS[number * 25 : (number + 1) * 25])
        path = str(tmp_path / f"{number}.{request.param}")
        part.to_parquet(path) if request.param == "parquet" else part.to_json(path)
    kind = {"parquet": "parquet", "jsonl": "json"}[request.param]
    files = str(tmp_path / f"*.{request.param}")
    return lambda: datasets.load_dataset(kind, data_files=files, split="train", streaming=True)


@pytest.mark.parametrize("is_hub", [True, False])
def test_a_stream_goes_on_from_any_block(stream, is_hub, monkeypatch):
    monkeypatch.setattr(memory, "BLOCK_ROWS", 7)
    reader = Streamed(stream, "a", is_hub, lambda: 50)
    blocks = list(reader.blocks(0))
    assert rows_of(blocks) == [(f"a:{number}", row) for number, row in enumerate(ROWS, start=1)]
    for number, block in enumerate(blocks):
        place = json.loads(json.dumps(block.place))
        again = list(reader.blocks(0, place))
        assert [one.rows for one in again] == [one.rows for one in blocks[number + 1 :]]
    assert reader.size(0) == 50 / 7
    assert reader.size(0, [43, None]) == 1
    assert reader.find("a:33") == {"n": 32}
    assert reader.counts(0) is None


def test_a_stream_of_unknown_length():
    assert Streamed(lambda: None, "a", True, lambda: None).size(0) is None
