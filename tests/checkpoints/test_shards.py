"""Checkpoints in shards: rows are found wherever they lie, and a set that is not whole is not used."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lit_rlhf.checkpoints import shards
from lit_rlhf.checkpoints.folder import newest_valid
from lit_rlhf.checkpoints.plugin import SafeCheckpointIO
from lit_rlhf.checkpoints.shards import Rows, read_sharded, rows_like, save_sharded, whole_tree
from lit_rlhf.checkpoints.writing import NotWrittenError

CPU = torch.device("cpu")
SHAPES = {"even": (4, 3), "uneven": (7, 2), "few": (1, 5), "none": (0, 4), "flat": (5,)}


def values(name):
    return torch.arange(torch.Size(SHAPES[name]).numel(), dtype=torch.float32).reshape(SHAPES[name]) + 0.5


def tree_of(mesh, step=1):
    placed = {name: distribute_tensor(values(name), mesh, [Shard(0)]) for name in SHAPES}
    tied = {"weight": placed["even"], "again": placed["even"]}
    return {"state_dict": {**placed, **tied, "plain": torch.ones(2)}, "step": step, "states": [{"exp": placed["flat"]}]}


def all_ranks():
    return init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))


def written(rank, folder, steps=1):
    """Every rank writes, and reads what it would hold of a module sharded over as many."""
    mesh = all_ranks()
    for step in range(steps):
        save_sharded(tree_of(mesh, step), folder / "last.ckpt", CPU)
    found = read_sharded(folder / "last.ckpt")["state_dict"]
    own = tree_of(mesh)["state_dict"]
    return [rows_like(own[name], found[name]).to_local().equal(own[name].to_local()) for name in SHAPES]


def failing(rank, folder):
    mesh = all_ranks()
    save_sharded(tree_of(mesh, 0), folder / "last.ckpt", CPU)
    write = shards.write

    def broken(tree, path, *more):
        if rank == 1:
            raise NotWrittenError(errno.ENOSPC, "no room for the test")
        return write(tree, path, *more)

    shards.write = broken
    with pytest.raises(NotWrittenError, match="no room for the test" if rank == 1 else "by rank 1: no room"):
        save_sharded(tree_of(mesh, 1), folder / "last.ckpt", CPU)
    return True


def placed_otherwise(rank, folder):
    mesh = all_ranks()
    tree = {"x": distribute_tensor(torch.ones(2, 2), mesh, [Replicate()])}
    with pytest.raises(ValueError, match="only rows over ranks"):
        save_sharded(tree, folder / "last.ckpt", CPU)
    return True


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_what_ranks_wrote_is_read_by_as_many_and_by_one(num_ranks, on_ranks, tmp_path):
    found = on_ranks(written, tmp_path, num_ranks=num_ranks)
    assert found == [[True] * len(SHAPES)] * num_ranks
    read = SafeCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    for name in SHAPES:
        assert read["state_dict"][name].equal(values(name))
    assert read["state_dict"]["weight"].equal(values("even"))
    assert read["states"][0]["exp"].equal(values("flat"))
    assert read["state_dict"]["plain"].equal(torch.ones(2))
    assert read["step"] == 0


def test_any_run_of_rows_is_read_across_files(on_ranks, tmp_path):
    on_ranks(written, tmp_path, num_ranks=3)
    rows = read_sharded(tmp_path / "last.ckpt")["state_dict"]["uneven"]
    assert isinstance(rows, Rows)
    assert rows.shape == (7, 2)
    for begin in range(8):
        for end in range(begin, 8):
            assert rows.between(begin, end).equal(values("uneven")[begin:end])


def test_only_what_a_checkpoint_names_is_kept(on_ranks, tmp_path):
    on_ranks(written, tmp_path, 3, num_ranks=2)
    (folder,) = (tmp_path / "shards").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["rank-0.ckpt", "rank-1.ckpt"]
    assert whole_tree(read_sharded(tmp_path / "last.ckpt"))["step"] == 2


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "of another"])
def test_a_set_that_is_not_whole_is_not_used(damage, on_ranks, tmp_path):
    on_ranks(written, tmp_path / "other", num_ranks=2)
    on_ranks(written, tmp_path, num_ranks=2)
    assert newest_valid(tmp_path).path == tmp_path / "last.ckpt"
    (file,) = (tmp_path / "shards").rglob("rank-1.ckpt")
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        (other,) = (tmp_path / "other").rglob("rank-0.ckpt")
        file.write_bytes(other.read_bytes())
    found = newest_valid(tmp_path)
    assert found.path is None
    assert "rank-1.ckpt" in found.skipped[0]
    for read in (read_sharded, SafeCheckpointIO().load_checkpoint):
        with pytest.raises(ValueError, match=r"rank-1\.ckpt"):
            read(tmp_path / "last.ckpt")


def test_if_one_rank_has_no_room_none_has_written(on_ranks, tmp_path):
    assert on_ranks(failing, tmp_path, num_ranks=2) == [True, True]
    assert SafeCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["step"] == 0


def test_rows_alone_can_be_saved(on_ranks, tmp_path):
    assert on_ranks(placed_otherwise, tmp_path, num_ranks=2) == [True, True]


def test_one_file_has_no_shards(tmp_path):
    SafeCheckpointIO().save_checkpoint({"x": torch.ones(1)}, tmp_path / "last.ckpt")
    assert read_sharded(tmp_path / "last.ckpt") is None
    torch.save({"x": torch.ones(1)}, tmp_path / "old.ckpt")
    assert read_sharded(tmp_path / "old.ckpt") is None
    with pytest.raises(FileNotFoundError):
        read_sharded(tmp_path / "none.ckpt")
