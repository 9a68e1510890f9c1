"""Writing: whole or not at all, without a second copy, and in words when the disk is full."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import tracemalloc
from collections import namedtuple

import pytest
import torch
from safetensors import safe_open

from lit_rlhf.checkpoints import writing
from lit_rlhf.checkpoints.reading import read
from lit_rlhf.checkpoints.writing import NotWrittenError, remove_unfinished, write

OLD, NEW = {"epoch": 1, "w": torch.zeros(4)}, {"epoch": 2, "w": torch.zeros(50_000)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "last.ckpt"
    write(OLD, path)
    return path


@pytest.fixture
def is_intact(path):
    """Whether the folder holds the old checkpoint and nothing else."""

    def check():
        assert read(path)["epoch"] == 1
        assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]

    return check


def test_any_reader_of_safetensors_opens_it(tree, tmp_path):
    write(tree, tmp_path / "new" / "a.ckpt")
    with safe_open(tmp_path / "new" / "a.ckpt", "pt") as file:
        assert torch.equal(file.get_tensor("state_dict/head"), tree["state_dict"]["head"])
        assert file.get_tensor("optimizer_states/0/state/0/exp_avg").dtype == torch.bfloat16
        assert file.metadata()["format"] == "lit_rlhf.checkpoint"


def test_it_is_flushed_before_and_after_it_gets_its_name(path, monkeypatch):
    seen, plain = [], os.fsync

    def fsync(file):
        seen.append((stat.S_ISDIR(os.fstat(file).st_mode), read(path)["epoch"]))
        plain(file)

    monkeypatch.setattr(os, "fsync", fsync)
    write(NEW, path)
    assert seen == [(False, 1), (True, 2)]


def test_there_is_no_second_copy(tmp_path):
    """Neither of everything nor of any one tensor."""
    tree = {str(number): torch.zeros(1_000_000) for number in range(8)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    write(tree, tmp_path / "a.ckpt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_000


def test_a_full_disk_is_found_before_writing(path, is_intact, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 1234, 1234))
    monkeypatch.setattr(writing, "_write_file", lambda *_: pytest.fail("it wrote"))
    said = rf"No space left.*needs 200,\d+ bytes, and 1,234 are free in {path.parent}"
    with pytest.raises(NotWrittenError, match=said) as error:
        write(NEW, path)
    assert error.value.errno == errno.ENOSPC
    is_intact()


def test_a_file_system_that_says_nothing_is_written_to(path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("usage", "total used free")(0, 0, 0))
    write(NEW, path)
    assert read(path)["epoch"] == 2


def test_a_limit_that_is_met_while_writing(path, is_intact):
    """A quota, or a disk that fills up meanwhile; a limit on file sizes stands in for them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(NotWrittenError, match=r"needs 200,\d+ bytes, and [\d,]+ are free"):
            write(NEW, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    is_intact()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("when", ["write", "fsync", "rename"])
def test_whatever_fails_leaves_what_was_there(path, is_intact, monkeypatch, number, when):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    owner, name = {"write": (writing, "bytes_of"), "fsync": (os, "fsync"), "rename": (type(path), "replace")}[when]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(NotWrittenError, match=os.strerror(number)) as error:
        write(NEW, path)
    assert error.value.errno == number
    is_intact()


def test_a_folder_that_may_not_be_written_to_raises(path, is_intact, monkeypatch):
    """Lightning swallows this error. The mode of the folder would not stop a test that runs as root."""

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "open", forbidden)
        with pytest.raises(NotWrittenError, match=r"was not written \(Permission denied\)"):
            write(NEW, path)
    is_intact()


def test_a_file_where_a_folder_should_be(path, is_intact):
    with pytest.raises(NotWrittenError, match=r"Not a directory|File exists"):
        write(NEW, path / "more" / "a.ckpt")
    is_intact()


def test_what_has_no_place_leaves_what_was_there(path, is_intact):
    with pytest.raises(ValueError, match="at bad"):
        write({**NEW, "bad": object()}, path)
    is_intact()


def test_what_a_killed_run_left_is_removed_and_told(path, is_intact):
    (path.parent / "step-7.ckpt.part").write_bytes(b"x" * 1500)
    assert remove_unfinished(path.parent) == ["step-7.ckpt.part (1,500 bytes)"]
    is_intact()
