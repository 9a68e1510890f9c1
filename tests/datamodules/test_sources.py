"""Whatever the user points at becomes rows with addresses; what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from datamodules import sources
from datamodules.options import Source
from datamodules.records import BadRowError, Layout
from datamodules.sources import OpenSource, Row, find_row, open_sources

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


def test_every_kind_of_file(write_rows, kind):
    (source,) = open_sources(write_rows(kind, ROWS), "train")
    assert [row.decode() for row in source.read()] == ROWS
    assert source.num_rows == 5
    assert [row.source for row in source.read()] == [kind] * 5
    json.dumps(source.fingerprint)


def test_folder_glob_and_list(tmp_path):
    (tmp_path / "deep").mkdir()
    first, second = write(tmp_path / "a.jsonl", LINES), write(tmp_path / "deep" / "b.json", json.dumps(ROWS[:2]))
    write(tmp_path / "notes.txt", "not data")
    both = numbered("a.jsonl") + numbered("deep/b.json", ROWS[:2])
    assert rows_of(str(tmp_path)) == both
    assert rows_of(str(tmp_path / "**" / "*.json*")) == both
    assert rows_of([str(first), Source(str(second))]) == both


def test_rows_in_memory():
    assert rows_of(ROWS, "validation") == numbered("validation")
    assert [source.name for source in open_sources(ROWS, "train")] == ["train"]


def test_data_sets_in_memory_beside_other_sources(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    assert rows_of(table) == numbered("train")
    stream = table.to_iterable_dataset()
    path = write(tmp_path / "a.jsonl", LINES)
    mixed = [table, str(path), ROWS[:2], stream]
    expected = numbered("train[0]") + numbered("a.jsonl") + numbered("train[2]", ROWS[:2]) + numbered("train[3]")
    assert rows_of(mixed) == expected
    splits = datasets.DatasetDict({"train": table, "test": table.select([3])})
    assert rows_of(splits, "test") == numbered("test", ROWS[3:4])
    assert rows_of({"validation": ROWS}, "validation") == numbered("validation")
    with pytest.raises(ValueError, match=r"data\.validation: the data sets given have no split .*, but train, test"):
        rows_of(splits, "validation")


def test_hub(monkeypatch):
    calls = []

    class Stream:
        info = SimpleNamespace(splits={"test": SimpleNamespace(num_examples=5)})

        def iter(self, batch_size):
            yield {key: [row[key] for row in ROWS] for key in ROWS[0]}

        def state_dict(self):
            return {"at": 5}

    def load_dataset(path, config, **options):
        calls.append((path, config, options))
        if path == "org/gone":
            raise FileNotFoundError("not on the hub")
        return Stream()

    fake = ModuleType("datasets")
    fake.load_dataset, fake.Dataset, fake.IterableDataset = load_dataset, list, tuple
    monkeypatch.setitem(sys.modules, "datasets", fake)
    (source,) = open_sources(Source("org/name", config="small", revision="abc"), "predict")
    assert [(row.address, row.decode()) for row in source.read()] == numbered("org/name")
    assert source.num_rows == 5
    assert calls[0] == ("org/name", "small", {"split": "test", "revision": "abc", "streaming": True})
    (unknown,) = open_sources("org/name", "train")
    assert unknown.num_rows is None
    (limited,) = open_sources(Source("org/name", split="test", limit=2), "train")
    assert limited.num_rows == 2
    assert [row.address for row in limited.read()] == ["org/name:1", "org/name:2"]
    (gone,) = open_sources("org/gone", "train")
    with pytest.raises(ValueError, match="'org/gone' is no file here, and the hub does not give it: not on the hub"):
        next(gone.read())


def test_nothing_given():
    with pytest.raises(ValueError, match=r"data\.train is empty"):
        open_sources([], "train")
    with pytest.raises(ValueError, match=r"source 'a' has weight -1; a weight is a number above 0"):
        OpenSource(Source("a", weight=-1))
    with pytest.raises(ValueError, match=r"source 'a' has limit 0; a limit is at least 1"):
        OpenSource(Source("a", limit=0))
    for nonsense in (iter(ROWS), 3):
        with pytest.raises(ValueError, match=r"data\.train: an? \w+ is no source; give paths, lists of rows"):
            open_sources(nonsense, "train")
    with pytest.raises(ValueError, match=r"data\.train: a dict is no source"):
        open_sources(["org/name", {"path": "a"}], "train")


def test_a_broken_line_is_told_only_when_decoded(tmp_path):
    deep, long = b'{"a": ' + b"[" * 100_000, b"1" * 5000
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": \n{"a": "\xff"}\n' + deep + b"\n" + long)
    (source,) = open_sources(str(path), "train")
    _, *broken = source.read()
    messages = [
        "line is not JSON: Expecting value at column 6",
        r"line is not UTF-8 \(byte 7\)",
        "line cannot be read: maximum recursion depth",
        "line cannot be read: Exceeds the limit",
    ]
    for row, message in zip(broken, messages, strict=True):
        with pytest.raises(BadRowError, match=message):
            row.decode()


@pytest.mark.parametrize("limit", [1, 4, 5, 7, 8, 12])
def test_a_limit_over_several_files(write_rows, kind, limit, tmp_path):
    write_rows(kind, ROWS)
    write(tmp_path / "z.jsonl", LINES)
    (source,) = open_sources(Source(str(tmp_path), limit=limit), "train")
    found = [row.decode() for row in source.read()]
    assert found == (ROWS + ROWS)[:limit]
    assert source.num_rows == len(found)


def test_fingerprint_sees_change(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", LINES)

    def prints(**options):
        return OpenSource(Source(str(path), **options)).fingerprint

    seen = [prints(), prints(weight=2), prints(limit=3), prints(columns={"a": "b"}), prints(tags={"a": "b"})]
    write(path, LINES + LINES)
    seen.append(prints())
    write(path, (LINES + LINES).replace("p4", "p5"))
    seen.append(prints())
    seen += [OpenSource(Source("train"), rows=rows).fingerprint for rows in (ROWS, ROWS[:4], ROWS[1:], [])]
    seen += [OpenSource(Source("org/name", revision=revision)).fingerprint for revision in ("a", "b")]
    monkeypatch.setattr(sources, "ORDER_VERSION", 0)
    seen.append(prints())
    assert len({json.dumps(one) for one in seen}) == len(seen)
    assert json.loads(json.dumps(seen)) == seen


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


def test_any_row_is_found_by_its_address(write_rows, kind):
    layout = Layout({"prompt": "question"}, {"role_tag": "speaker"})
    named = Source(str(write_rows(kind, ROWS)), columns=dict(layout.columns), tags=dict(layout.tags))
    opened = open_sources([ROWS[:1], named], "train")
    for row in opened[1].read():
        found = find_row(row.address, opened)
        assert (found.address, found.source, found.decode()) == (row.address, row.source, row.decode())
        assert found.layout == row.layout == layout._replace(folder=str(Path(named.path).parent))
    for address in ("train:2", f"{kind}:99", f"{kind}:0", f"{kind}", "other:1", "train:x"):
        with pytest.raises(ValueError, match=r"there is no row|no source has the row"):
            find_row(address, opened)


def test_entries_of_a_list_of_data_sets(tmp_path, monkeypatch):
    seen = []

    def read_dataset_info(path, names):
        seen.append((path.name, names))
        return [Source(str(tmp_path / "a.jsonl"), weight=0.5, name="one")]

    monkeypatch.setattr("datamodules.sources.read_dataset_info", read_dataset_info)
    write(tmp_path / "a.jsonl", LINES)
    for like in ("dataset_info.json", Source("here/dataset_info.json#one,two", weight=2)):
        (source,) = open_sources(like, "train")
        assert source.name == "one"
    assert source.weight == 1.0
    assert seen == [("dataset_info.json", []), ("dataset_info.json", ["one", "two"])]


def test_a_row_is_what_it_says():
    assert Row("a:1", "a", {"x": 1}) == ("a:1", "a", {"x": 1}, Layout())
    assert Row("a:1", "a", b'{"x": 1}').decode() == {"x": 1}


def test_a_text_is_no_path():
    with pytest.raises(ValueError, match=r"^data\.train: .*File name too long"):
        open_sources(["Once upon a time " * 1000], "train")
