"""A path names the files that a person would expect, in one order; what it does not name is told with the nearest."""

from __future__ import annotations

import os
import socket

import pytest

from datamodules.readers import finding
from datamodules.readers.finding import find_files, shown


def names(path, split="train"):
    return [shown(file) for file in find_files(str(path), split)]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trian.jsonl", r"no file '.*trian\.jsonl'; did you mean '.*train\.jsonl'\?"),
        ("nowhere/x.jsonl", r"no file '.*x\.jsonl'; looked in '.*nowhere'"),
        ("empty", r"'.*empty' holds no data file; known types are \.jsonl"),
        ("*.csv", r"holds no data file"),
        ("notes.txt", r"'.*notes\.txt' is of an unknown type; known types are \.jsonl"),
        ("lost.jsonl", r"no file '.*lost\.jsonl'"),
        ("*.jsonl", r"lost\.jsonl' is no regular file, or a link that leads nowhere"),
        ("socket.json", r"socket\.json' is no regular file"),
    ],
)
def test_missing_files(tmp_path, path, message):
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost.jsonl").symlink_to("gone.jsonl")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.json")
        with pytest.raises(ValueError, match=message):
            find_files(str(tmp_path / path))


def test_hub_names(tmp_path):
    assert find_files("org/name") == find_files("imdb") == ()
    for path in ("org/name.jsonl", "a/b/c", "./name", "~/nothing-here/name", str(tmp_path / "name"), "name.txt"):
        with pytest.raises(ValueError, match=f"no file '{path}'"):
            find_files(path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"no file 'trian'; did you mean 'train'\?"):
        find_files("trian")


def test_a_folder(tmp_path):
    for path in (".cache/a.jsonl", "deep/.a.jsonl", "deep/b.csv", "a.parquet", "c.txt", "dataset_info.json", "d.json"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.jsonl" / "e.tsv.gz").touch()
    (tmp_path / "link.jsonl").symlink_to("d.json")
    found = ["a.parquet", "d.json", "deep/b.csv", "folder.jsonl/e.tsv.gz", "link.jsonl"]
    assert names(tmp_path) == found
    assert names("folder.jsonl") == ["folder.jsonl/e.tsv.gz"]
    assert names("link.jsonl") == ["link.jsonl"]


def test_what_datasets_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"a": 1}, {"a": 2}])
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-123.arrow").touch()
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    assert names("one") == ["one/data-00000-of-00002.arrow", "one/data-00001-of-00002.arrow"]
    assert names("two", "test") == ["two/test/data-00000-of-00001.arrow"]
    with pytest.raises(ValueError, match="'two' has no split 'validation'; it has train, test"):
        find_files("two", "validation")


def test_files_are_sorted_whatever_the_file_system_says(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    for path in paths:
        open(path, "w").close()
    monkeypatch.setattr(finding.glob, "glob", lambda *_, **__: paths[::-1])
    assert names(tmp_path / "*.jsonl") == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_shown(tmp_path):
    assert shown(tmp_path / "a" / "b") == os.path.join("a", "b")
    assert shown("/elsewhere/b") == "/elsewhere/b"


def test_a_folder_whose_files_are_of_several_splits(tmp_path):
    for name in ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "test.jsonl", "extra.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.warns(UserWarning, match=r"is read for train: left out, by their names, are test\.jsonl; name files"):
        train = find_files(str(tmp_path), "train")
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "extra.jsonl"]
    assert [file.name for file in train] == names
    with pytest.warns(UserWarning, match="read for test: left out"):
        assert [file.name for file in find_files(str(tmp_path), "test")] == ["extra.jsonl", "test.jsonl"]
    (tmp_path / "extra.jsonl").unlink()
    with pytest.raises(ValueError, match="holds files of test and train, but none of validation"):
        find_files(str(tmp_path), "validation")
    (tmp_path / "test.jsonl").unlink()
    assert len(find_files(str(tmp_path), "validation")) == 2  # one split: the user says what it is for


@pytest.mark.parametrize("name", ["json", "csv", "text", "parquet"])
def test_the_name_of_a_loader_is_no_data_set(name):
    with pytest.raises(ValueError, match=f"no file '{name}'"):
        find_files(name)
