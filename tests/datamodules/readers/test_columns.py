"""Row groups and batches are read by themselves, in bounded memory; what is broken is named with its part."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from datamodules.readers import columns
from datamodules.readers.columns import Arrow, BatchRow, Parquet
from datamodules.records import BadRowError

TABLE = pa.table({"n": list(range(5000)), "text": [f"row {number} " * 20 for number in range(5000)]})


def rows_of(reader):
    return [row.decode() for unit in range(reader.num_units) for block in reader.blocks(unit) for _, row in block.rows]


@pytest.mark.parametrize("group", [5000, 700])
def test_parquet(tmp_path, group):
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet", row_group_size=group)
    reader = Parquet(tmp_path / "a.parquet", "a")
    assert reader.num_units == -(-5000 // group)
    assert rows_of(reader) == TABLE.to_pylist()
    assert max(len(block.rows) for block in reader.blocks(0)) <= 256
    assert max(block.num_bytes for block in reader.blocks(0)) < 200_000


def test_a_parquet_file_with_broken_pages(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(TABLE, path, row_group_size=1000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    reader = Parquet(path, "a")
    with pytest.raises(ValueError, match=r"a\.parquet: row group [123] is broken"):
        rows_of(reader)
    path.write_bytes(bytes(content)[:-100])
    with pytest.raises(ValueError, match=r"a\.parquet: not a Parquet file"):
        Parquet(path, "a")


def arrow(path, new, **options):
    with pa.OSFile(str(path), "wb") as sink, new(sink, TABLE.schema, **options) as writer:
        writer.write_table(TABLE, max_chunksize=600)
    return path


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_arrow(tmp_path, new, compression):
    reader = Arrow(arrow(tmp_path / "a.arrow", new, options=pa.ipc.IpcWriteOptions(compression=compression)), "a")
    assert reader.num_units == 9
    assert rows_of(reader) == TABLE.to_pylist()
    assert next(address for block in reader.blocks(2) for address, _ in block.rows) == "a:1201"


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_that_is_cut_off(tmp_path, new):
    path = arrow(tmp_path / "a.arrow", new)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"a\.arrow: not an Arrow file"):
        Arrow(path, "a")


def test_a_stream_of_dictionaries_is_refused(tmp_path):
    table = pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()})
    with pa.OSFile("a.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"a\.arrow: columns of the dictionary type cannot be read from a stream"):
        Arrow(tmp_path / "a.arrow", "a")


def test_what_datasets_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"messages": [{"role": "user", "content": f"{number}"}], "label": number % 2} for number in range(2500)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    reader = Arrow(tmp_path / "saved" / "data-00000-of-00001.arrow", "a")
    assert reader.num_units == 3
    assert rows_of(reader) == rows


def test_a_value_that_python_has_not_is_a_bad_row():
    late = pa.array([0, 2**62], pa.timestamp("s"))
    batch = pa.record_batch({"when": late, "n": [1, 2]})
    assert BatchRow(batch, 0).decode() == {"when": datetime.datetime(1970, 1, 1), "n": 1}
    with pytest.raises(BadRowError, match="a value cannot be read"):
        BatchRow(batch, 1).decode()
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    with pytest.raises(BadRowError, match="a value cannot be read"):
        BatchRow(pa.record_batch({"text": text}), 0).decode()


def test_blocks_of_huge_rows_are_small(tmp_path):
    table = pa.table({"text": ["x" * 100_000 + str(number) for number in range(20)]})
    pyarrow.parquet.write_table(table, "a.parquet", compression="none", use_dictionary=False)
    assert [len(block.rows) for block in Parquet(tmp_path / "a.parquet", "a").blocks(0)] == [1] * 20
    assert columns.BLOCK_BYTES < 100_000
