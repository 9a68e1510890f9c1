"""Every kind of source gives the same rows, with addresses; broken files are named."""

from __future__ import annotations

import gzip
import json
import sys
from types import ModuleType, SimpleNamespace

import pyarrow.parquet
import pytest

from datamodules import sources
from datamodules.records import BadRowError
from datamodules.sources import OpenSource, Source, count_rows, find_files, open_sources, read_file

ROWS = [{"prompt": f"p{number}", "chosen": "\u4f60", "rejected": "b"} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(path, content):
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def rows_of(like, split="train"):
    return [(row.address, row.decode()) for source in open_sources(like, split) for row in source.read()]


def numbered(name, rows=ROWS):
    return [(f"{name}:{number}", row) for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.jsonl.gz", LINES),
        ("a.json.gz", json.dumps(ROWS, indent=1)),
        ("a.jsonl", LINES.replace("\n", "\r\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("a.json", b"\xef\xbb\xbf\n " + json.dumps(ROWS).encode()),
        ("a.jsonl", LINES.rstrip("\n")),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_json(tmp_path, monkeypatch, name, content, chunk):
    monkeypatch.setattr(sources, "_CHUNK", max(chunk, 8))
    path = write(tmp_path / name, content)
    assert rows_of(str(path)) == numbered(name)
    assert count_rows(path) == 5


def test_addresses_are_line_numbers(tmp_path):
    path = write(tmp_path / "a.jsonl", '\n{"a": 1}\n\n  \n{"a": 2}\n')
    assert rows_of(path) == [("a.jsonl:2", {"a": 1}), ("a.jsonl:5", {"a": 2})]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    assert rows_of(str(path)) == numbered("a.parquet")
    assert count_rows(path) == 5
    with pytest.raises(ValueError, match=r"b\.parquet: not a Parquet file"):
        rows_of(str(write(tmp_path / "b.parquet", "no")))


def test_folder_glob_and_list(tmp_path):
    (tmp_path / "deep").mkdir()
    first, second = write(tmp_path / "a.jsonl", LINES), write(tmp_path / "deep" / "b.json", json.dumps(ROWS[:2]))
    write(tmp_path / "notes.txt", "not data")
    both = numbered("a.jsonl") + numbered("deep/b.json", ROWS[:2])
    assert rows_of(str(tmp_path)) == both
    assert rows_of(str(tmp_path / "**" / "*.json*")) == both
    assert rows_of([str(first), Source(str(second))]) == both


def test_files_are_sorted_whatever_the_file_system_says(tmp_path, monkeypatch):
    paths = [str(write(tmp_path / f"{name}.jsonl", LINES)) for name in "abc"]
    monkeypatch.setattr(sources.glob, "glob", lambda *_, **__: paths[::-1])
    assert [file.name for file in find_files(str(tmp_path / "*.jsonl"))] == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_rows_in_memory():
    assert rows_of(ROWS, "validation") == numbered("validation")
    assert [source.name for source in open_sources(ROWS, "train")] == ["train"]


def test_hub(monkeypatch):
    calls = []

    def load_dataset(path, config, **options):
        calls.append((path, config, options))
        stream = type("Stream", (list,), {"info": SimpleNamespace(splits={"test": SimpleNamespace(num_examples=5)})})
        return stream(ROWS)

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    like = Source("org/name", config="small", revision="abc")
    (source,) = open_sources(like, "predict")
    assert [(row.address, row.decode()) for row in source.read()] == numbered("org/name")
    assert source.num_rows == 5
    assert calls[0] == ("org/name", "small", {"split": "test", "revision": "abc", "streaming": True})
    (unknown,) = open_sources("org/name", "train")
    assert unknown.num_rows is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trian.jsonl", r"no file '.*trian\.jsonl'; did you mean '.*train\.jsonl'\?"),
        ("nowhere/x.jsonl", r"no file '.*x\.jsonl'; looked in '.*nowhere'"),
        ("empty", r"'.*empty' holds no data file; known types are \.jsonl"),
        ("*.csv", r"holds no data file"),
        ("notes.txt", r"'.*notes\.txt' is of an unknown type; known types are \.jsonl"),
    ],
)
def test_missing_files(tmp_path, path, message):
    write(tmp_path / "train.jsonl", LINES)
    write(tmp_path / "notes.txt", "not data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        find_files(str(tmp_path / path))


def test_hub_names():
    assert find_files("org/name") == ()
    with pytest.raises(ValueError, match="no file 'name'"):
        find_files("name")
    with pytest.raises(ValueError, match=r"no file 'org/name\.jsonl'"):
        find_files("org/name.jsonl")


def test_nothing_given():
    with pytest.raises(ValueError, match=r"data\.train is empty"):
        open_sources([], "train")
    with pytest.raises(ValueError, match=r"source 'a' has weight -1; a weight is a number above 0"):
        OpenSource(Source("a", weight=-1))


def test_a_broken_line_is_told_only_when_decoded(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": \n{"a": "\xff"}\n')
    (source,) = open_sources(str(path), "train")
    _, broken, latin = source.read()
    with pytest.raises(BadRowError, match="line is not JSON: Expecting value at column 6"):
        broken.decode()
    with pytest.raises(BadRowError, match=r"line is not UTF-8 \(byte 7\)"):
        latin.decode()


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a": ', '[{"a": 1}, {"a": }]', '[{"a": 1}'])
def test_a_broken_array_is_refused(tmp_path, content):
    path = write(tmp_path / "a.json", content)
    with pytest.raises(ValueError, match=r"a\.json:2: the JSON array breaks off or is not JSON"):
        list(read_file(path))


def test_an_array_of_another_encoding_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json: the JSON array is not UTF-8"):
        list(read_file(write(tmp_path / "a.json", b'[{"a": "\xff"}]')))


def test_a_broken_gzip_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode() * 100)[:-20])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: the compressed file is broken"):
        list(read_file(path))
    path.write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: the compressed file is broken"):
        list(read_file(path))


def test_fingerprint_sees_change(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES)
    prints = [OpenSource(Source(str(path))).fingerprint, OpenSource(Source(str(path), weight=2)).fingerprint]
    write(path, LINES + LINES)
    prints.append(OpenSource(Source(str(path))).fingerprint)
    prints += [OpenSource(Source("train"), rows=rows).fingerprint for rows in (ROWS, ROWS[:4], ROWS[1:])]
    assert len({json.dumps(one) for one in prints}) == len(prints)


def test_files_of_the_same_name_have_addresses_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.jsonl", json.dumps(ROWS[0]))
    assert [address for address, _ in rows_of(["a/train.jsonl", str(tmp_path / "b" / "train.jsonl")])] == [
        "a/train.jsonl:1",
        "b/train.jsonl:1",
    ]


def test_what_is_missing_is_told_with_its_key():
    with pytest.raises(ValueError, match=r"^data\.validation: no file 'gone\.jsonl'"):
        open_sources("gone.jsonl", "validation")
