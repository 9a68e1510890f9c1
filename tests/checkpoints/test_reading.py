"""Reading: any change of any byte is found, and nothing is run."""

from __future__ import annotations

import os
import random
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from lit_rlhf.checkpoints.reading import read, verify
from lit_rlhf.checkpoints.writing import write


@pytest.fixture
def path(tree, tmp_path):
    path = tmp_path / "last.ckpt"
    write(tree, path)
    return path


@pytest.fixture
def lightning(tmp_path):
    path = tmp_path / "lightning.ckpt"
    torch.save({"epoch": 3, "state_dict": {"w": torch.arange(1000.0)}}, path)
    return path


def assert_refused(path, reason=""):
    for act in (read, verify):
        with pytest.raises(ValueError, match=rf"{path} cannot be used: .*{reason}"):
            act(path)


def test_everything_comes_back(path, tree, same):
    verify(path)
    assert same(read(path), tree)


def test_a_flipped_bit_anywhere_is_found(path):
    sound = path.read_bytes()
    rng = random.Random(0)
    for at in [*range(200), *rng.choices(range(len(sound)), k=200)]:
        broken = bytearray(sound)
        broken[at] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        assert_refused(path)


def test_a_cut_anywhere_is_found(path):
    sound = path.read_bytes()
    for length in [*range(12), *random.Random(0).choices(range(len(sound)), k=60), len(sound) - 1]:
        path.write_bytes(sound[:length])
        assert_refused(path)
    path.write_bytes(sound + b"\0")
    assert_refused(path, "bytes of data")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "neither a checkpoint of lit_rlhf nor one of Lightning"),
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "neither"),
        (b"\xff" * 8 + b"{" * 100, "neither"),
        ((10**6).to_bytes(8, "little") + b"{}", "cut short: 10 bytes are left"),
        (b"PK\x03\x04 and then nothing", "cut short or damaged"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "foreign.ckpt"
    path.write_bytes(content)
    assert_refused(path, reason)


def test_weights_are_no_checkpoint(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / "adapter_model.safetensors")
    assert_refused(tmp_path / "adapter_model.safetensors", "a safetensors file, but no checkpoint")


def test_a_file_that_is_not_there(tmp_path):
    for act in (read, verify):
        with pytest.raises(FileNotFoundError):
            act(tmp_path / "no.ckpt")


def test_something_unknown_is_refused(tmp_path, monkeypatch):
    from lit_rlhf.checkpoints import writing

    monkeypatch.setattr(writing, "flatten", lambda tree: ({"!module": "os"}, {}))
    write({}, tmp_path / "later.ckpt")
    with pytest.raises(ValueError, match="holds something unknown"):
        read(tmp_path / "later.ckpt")


def test_files_of_lightning_are_read(lightning):
    verify(lightning)
    assert read(lightning)["state_dict"]["w"].sum() == 499_500


def test_damage_to_files_of_lightning_is_found(lightning):
    sound = bytearray(lightning.read_bytes())
    with zipfile.ZipFile(lightning) as archive:
        data = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    sound[data.header_offset + 1000] ^= 4
    lightning.write_bytes(sound)
    assert torch.load(lightning, weights_only=True)["epoch"] == 3, "torch itself does not look"
    assert_refused(lightning, "data/0 is not what was written")
    lightning.write_bytes(sound[: len(sound) // 2])
    assert_refused(lightning, "cut short or damaged")


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_bomb_is_refused_and_does_not_go_off(tmp_path):
    path, sign = tmp_path / "bomb.ckpt", tmp_path / "ran"
    for legacy in (False, True):
        torch.save({"state_dict": Bomb(sign)}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match=r"running code|neither"):
            read(path)
        assert not sign.exists()
        torch.load(path, **{"weights_" + "only": False})  # it is a bomb
        sign.rmdir()
