"""Which checkpoint of a folder a run goes on from."""

from __future__ import annotations

import os

import pytest

from lit_rlhf.checkpoints.folder import newest_valid, valid_beside
from lit_rlhf.checkpoints.writing import write


@pytest.fixture
def folder(tmp_path):
    for age, name in enumerate(("step-8", "last", "step-4")):
        path = tmp_path / f"{name}.ckpt"
        write({"name": name}, path)
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "step-9.ckpt.part").touch()
    (tmp_path / "folder.ckpt").mkdir()
    return tmp_path


def damage(path):
    at = path.stat().st_mtime
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, (at, at))


def test_last_comes_first_and_then_the_newest(folder):
    assert newest_valid(folder) == (folder / "last.ckpt", [])
    damage(folder / "last.ckpt")
    path, skipped = newest_valid(folder)
    assert path == folder / "step-8.ckpt"
    assert len(skipped) == 1
    assert "last.ckpt cannot be used" in skipped[0]
    damage(folder / "step-8.ckpt")
    assert newest_valid(folder).path == folder / "step-4.ckpt"
    damage(folder / "step-4.ckpt")
    path, skipped = newest_valid(folder)
    assert path is None
    assert ["last" in skipped[0], "step-8" in skipped[1], "step-4" in skipped[2]] == [True] * 3


def test_those_beside_a_checkpoint(folder):
    damage(folder / "step-4.ckpt")
    assert valid_beside(folder / "last.ckpt") == [folder / "step-8.ckpt"]


def test_a_folder_that_is_empty_or_missing(tmp_path):
    assert newest_valid(tmp_path) == (None, [])
    assert newest_valid(tmp_path / "none") == (None, [])
