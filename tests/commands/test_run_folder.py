"""Which folder a run takes."""

from __future__ import annotations

import os

import pytest

from lit_rlhf.checkpoints.writing import write
from lit_rlhf.commands.run_folder import folder_of_checkpoint, free_folder, last_checkpoint


def test_a_free_folder_is_taken_as_it_is(tmp_path):
    assert free_folder(tmp_path / "dpo") == tmp_path / "dpo"
    (tmp_path / "dpo").mkdir()
    assert free_folder(tmp_path / "dpo") == tmp_path / "dpo"
    assert [path.name for path in tmp_path.iterdir()] == ["dpo"]


def test_a_taken_folder_is_left_alone(tmp_path):
    for name in ("dpo", "dpo-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert free_folder(tmp_path / "dpo") == tmp_path / "dpo-3"


def test_a_resumed_run_goes_on_where_its_checkpoint_lies(tmp_path):
    checkpoint = tmp_path / "dpo-2" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert folder_of_checkpoint(str(checkpoint), tmp_path / "dpo") == tmp_path / "dpo-2"


def test_a_word_or_a_checkpoint_elsewhere_means_the_folder_of_the_configuration(tmp_path):
    (tmp_path / "a.ckpt").touch()
    (tmp_path / "dpo" / "checkpoints").mkdir(parents=True)
    (tmp_path / "dpo" / "checkpoints" / "last.ckpt").touch()
    assert folder_of_checkpoint("last", tmp_path / "dpo") == tmp_path / "dpo"
    assert folder_of_checkpoint("best", tmp_path / "dpo") == tmp_path / "dpo"
    assert folder_of_checkpoint(str(tmp_path / "a.ckpt"), tmp_path / "dpo") == tmp_path / "dpo"


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--ckpt_path=.*nope.ckpt: there is no such checkpoint"):
        folder_of_checkpoint(str(tmp_path / "nope.ckpt"), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"--ckpt_path=last: .*checkpoints holds no checkpoint"):
        last_checkpoint("last", tmp_path)


def test_auto_begins_anew_where_there_is_nothing(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert last_checkpoint("auto", tmp_path) is None
    assert "holds no checkpoint; the run begins anew" in caplog.text


@pytest.mark.parametrize("word", ["last", "auto"])
def test_the_newest_whole_one_is_taken_and_what_was_skipped_is_said(tmp_path, caplog, word):
    folder = tmp_path / "checkpoints"
    for name in ("step-8", "last"):
        write({"name": name}, folder / f"{name}.ckpt")
    assert last_checkpoint(word, tmp_path) == str(folder / "last.ckpt")
    os.truncate(folder / "last.ckpt", 100)
    with caplog.at_level("INFO"):
        assert last_checkpoint(word, tmp_path) == str(folder / "step-8.ckpt")
    assert "skipped: the checkpoint" in caplog.text
    assert "last.ckpt cannot be used: it is cut short" in caplog.text
    (folder / "step-8.ckpt").write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"--ckpt_path={word}: no checkpoint in .* can be used\n.*cut short.*\n.*empty"
    ):
        last_checkpoint(word, tmp_path)
