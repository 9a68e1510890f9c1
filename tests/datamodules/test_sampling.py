"""A sample is taken from all over a source, small sources are taken whole, and their rows are counted or estimated."""

from __future__ import annotations

import gzip
import json

import pytest

from datamodules.options import Source
from datamodules.readers.blocks import BLOCK_BYTES
from datamodules.readers.lines import Lines
from datamodules.sampling import take_sample
from datamodules.sources import OpenSource, open_sources

ROW_BYTES = 100


def write(path, number, first=0):
    """Lines of 100 bytes each."""
    lines = "".join(json.dumps({"text": str(first + at).rjust(ROW_BYTES - 13)}) + "\n" for at in range(number))
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as stream:
        stream.write(lines)
    return OpenSource(Source(str(path), name="s"))


def numbers(sample):
    return [int(row.decode()["text"]) for row in sample.rows]


def test_a_small_source_is_taken_whole_in_file_order(kind, write_rows):
    rows = [{"text": f"row {number}", "n": number} for number in range(50)]
    sample = take_sample(OpenSource(Source(str(write_rows(kind, rows)))), 50)
    assert [row.decode()["text"] for row in sample.rows] == [row["text"] for row in rows]
    assert (sample.num_rows, sample.is_exact, sample.is_whole, sample.is_beginning) == (50, True, True, False)


def test_one_row_too_many_is_no_whole_source(tmp_path):
    source = write(tmp_path / "a.jsonl", 51)
    assert not take_sample(source, 50).is_whole
    assert take_sample(source, 51).is_whole


def test_a_large_file_is_sampled_all_over_and_counted(tmp_path):
    in_a_block = BLOCK_BYTES / ROW_BYTES
    number = int(200 * in_a_block)
    sample = take_sample(write(tmp_path / "a.jsonl", number), 500)
    found = numbers(sample)
    assert len(found) == len(set(found)) == 500
    assert found == sorted(found)
    assert (sample.num_rows, sample.is_exact, sample.is_whole, sample.is_beginning) == (number, True, False, False)
    blocks = {int(row // in_a_block) for row in found}
    assert len(blocks) >= 6  # 8 times 500 rows are gathered, 655 in a block
    assert max(blocks) - min(blocks) > 100
    assert numbers(take_sample(write(tmp_path / "a.jsonl", number), 500, seed=1)) != found


def test_lines_without_numbers_are_not_counted_but_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.readers.lines._MAX_NUMBERED", 0)
    monkeypatch.setattr(Lines, "counts", lambda *_: pytest.fail("the whole file was read"))
    number = int(40 * BLOCK_BYTES / ROW_BYTES)
    sample = take_sample(write(tmp_path / "a.jsonl", number), 100)
    assert not sample.is_exact
    assert sample.num_rows == pytest.approx(number, rel=0.02)
    assert all("@" in row.address for row in sample.rows)


def test_of_what_is_read_from_front_to_back_the_beginning_is_taken(tmp_path):
    number = 20 * BLOCK_BYTES // ROW_BYTES
    sample = take_sample(write(tmp_path / "a.jsonl.gz", number), 100)
    assert numbers(sample) == list(range(100))
    assert sample.is_beginning
    assert not sample.is_exact
    assert sample.num_rows == pytest.approx(number, rel=0.2)


def test_of_several_compressed_files_each_gives_rows(tmp_path):
    for part in range(5):
        write(tmp_path / f"part{part}.jsonl.gz", 2000, first=2000 * part)
    (source,) = open_sources(str(tmp_path), "train")
    sample = take_sample(source, 200)
    assert len({number // 2000 for number in numbers(sample)}) >= 3
    assert not sample.is_beginning
    assert sample.num_rows == pytest.approx(10_000, rel=0.2)
    everything = take_sample(source, 20_000)
    assert numbers(everything) == list(range(10_000))
    assert everything.is_whole


def test_a_limit_bounds_the_sample_and_the_estimate(tmp_path):
    write(tmp_path / "a.jsonl.gz", 20 * BLOCK_BYTES // ROW_BYTES)
    limited = OpenSource(Source(str(tmp_path / "a.jsonl.gz"), limit=3000))
    sample = take_sample(limited, 100)
    assert (len(sample.rows), sample.num_rows, sample.is_exact) == (100, 3000, False)
    assert numbers(take_sample(limited, 4000)) == list(range(3000))


def test_a_limit_may_end_in_the_middle_of_a_later_file(tmp_path):
    for part in range(2):
        write(tmp_path / f"part{part}.jsonl.gz", 3000, first=3000 * part)
    limited = OpenSource(Source(str(tmp_path), limit=4500))
    assert numbers(take_sample(limited, 9000)) == list(range(4500))


def test_a_weight_does_not_change_what_is_looked_at(tmp_path):
    write(tmp_path / "a.jsonl", 40)
    for weight in (0.25, 3.0):
        sample = take_sample(OpenSource(Source(str(tmp_path / "a.jsonl"), weight=weight)), 100)
        assert numbers(sample) == list(range(40))


def test_rows_in_memory_and_streams(tmp_path):
    (source,) = open_sources([{"text": str(number)} for number in range(1000)], "train")
    sample = take_sample(source, 10)
    assert (sample.num_rows, sample.is_exact) == (1000, True)
    assert max(numbers(sample)) > 200
    datasets = pytest.importorskip("datasets")
    stream = datasets.IterableDataset.from_generator(lambda: ({"text": str(number)} for number in range(1000)))
    (source,) = open_sources(stream, "train")
    sample = take_sample(source, 10)
    assert (numbers(sample), sample.num_rows, sample.is_beginning) == (list(range(10)), None, True)
    assert take_sample(source, 1000).is_whole


def test_an_empty_file_has_no_rows(tmp_path):
    sample = take_sample(write(tmp_path / "a.jsonl", 0), 10)
    assert sample.rows == []
    assert sample.is_whole


def test_huge_rows_end_the_gathering(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sampling._GATHERED_BYTES", 3 * BLOCK_BYTES)
    sample = take_sample(write(tmp_path / "a.jsonl", 20_000), 10_000)
    assert len(sample.rows) == pytest.approx(3 * BLOCK_BYTES / ROW_BYTES, rel=0.4)
    assert sample.num_rows == 20_000
