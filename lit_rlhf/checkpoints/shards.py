"""Checkpoints of models that are sharded over ranks, without gathering: each rank writes the rows that it holds.

    last.ckpt                    what is not sharded, and which files hold the rest; written last
    shards/<token>/rank-0.ckpt   the rows of rank 0, a file that verifies itself
    shards/<token>/rank-1.ckpt   ...

The first file names the digest of each of the others, so that it can be used if all of them are there and whole, and
not otherwise. It takes its name when they are complete, and what no file names is removed after that: a kill at any
moment leaves the checkpoint before. Any number of ranks reads such a checkpoint, and so does a single device.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor, Shard

from lit_rlhf.checkpoints.reading import SHARDS, read, shards_of
from lit_rlhf.checkpoints.writing import NotWrittenError, write
from lit_rlhf.ranks import gather_texts, is_first_rank

_MARK = "lit_rlhf.shard"
"""The key of what stands for a sharded tensor in the tree."""


class Rows(NamedTuple):
    """A tensor whose rows lie in several files.

    Args:
        shape: of the whole.
        pieces: the file, the first row and the number of rows of each piece, in their order.
        number: of the tensor in each file.
    """

    shape: torch.Size
    pieces: list[tuple[Path, int, int]]
    number: str

    def between(self, begin: int, end: int) -> Tensor:
        """The rows from ``begin`` to before ``end``, on the CPU; nothing else is read."""
        parts: list[Tensor] = []
        for file, first, num_rows in self.pieces:
            low, high = max(begin, first), min(end, first + num_rows)
            if low < high or (not parts and begin == end):
                with safe_open(file, "pt") as tensors:
                    rows = tensors.get_slice(f"tensors/{self.number}")
                    parts.append(rows[max(low - first, 0) : max(high - first, 0)])
        return torch.cat(parts)

    def whole(self) -> Tensor:
        """All rows."""
        return self.between(0, self.shape[0])


def save_sharded(tree: dict[str, Any], path: Path, device: torch.device) -> None:
    """Write a checkpoint, each rank its rows; all ranks call this together.

    Args:
        tree: of Lightning, with sharded tensors in it.
        path: of the file that names the others.
        device: that the ranks communicate on.

    Raises:
        NotWrittenError: on every rank, if any of them could not write; what was saved before is as it was.
        ValueError: if a tensor is sharded otherwise than by its rows.
    """
    local: list[Tensor] = []
    begins: list[int] = []

    def part(value: DTensor) -> dict[str, Any]:
        if tuple(value.placements) != (Shard(0),):
            raise ValueError(f"a tensor is placed as {value.placements}; only rows over ranks can be saved in shards")
        mine = value.to_local().detach()
        is_tied = any(mine.data_ptr() == other.data_ptr() for other in local if other.numel())
        local.append(mine.clone() if is_tied else mine)
        begins.append(_first_row(value))
        return {_MARK: len(local) - 1, "shape": list(value.shape)}

    rest = _mapped(tree, lambda value: part(value) if isinstance(value, DTensor) else value)
    token = gather_texts(uuid.uuid4().hex, device)[0]
    folder = path.parent / SHARDS / token
    mine = {"tensors": {str(number): tensor for number, tensor in enumerate(local)}}
    digests = _together(lambda: write(mine, folder / f"rank-{dist.get_rank()}.ckpt"), path, device)
    everyones = [json.loads(text) for text in gather_texts(json.dumps(begins), device)]
    named = {SHARDS: json.dumps({"folder": token, "digests": digests, "begins": everyones})}

    def finish() -> str:
        return write(rest, path, named) if is_first_rank() else "-"

    _together(finish, path, device)
    if is_first_rank():
        remove_unnamed(path.parent)


def read_sharded(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint whose rows stay in their files until they are asked for.

    Args:
        path: of the file that names the others.

    Returns:
        The tree, with :class:`Rows` in the place of sharded tensors; None where nothing in it is sharded.

    Raises:
        ValueError: naming the file that is damaged or not there.
    """
    shards = shards_of(path)
    if shards is None:
        return None
    tree = read(path)  # verifies the shards as well

    def rows(value: dict[str, Any]) -> Rows:
        number, shape = value[_MARK], torch.Size(value["shape"])
        firsts = [begins[number] for begins in shards.begins]
        sizes = [after - first for first, after in zip(firsts, [*firsts[1:], shape[0]], strict=True)]
        return Rows(shape, list(zip(shards.files, firsts, sizes, strict=True)), str(number))

    return _mapped(tree, lambda value: rows(value) if isinstance(value, dict) and _MARK in value else value)


def whole_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with all rows read."""
    return _mapped(tree, lambda value: value.whole() if isinstance(value, Rows) else value)


def remove_unnamed(folder: Path) -> None:
    """Remove the shards in a folder that none of its checkpoints names."""
    named = set()
    for path in folder.glob("*.ckpt"):
        with suppress(ValueError):  # one that is damaged names nothing that could be used
            shards = shards_of(path)
            named |= set() if shards is None else {file.parent for file in shards.files}
    for place in (folder / SHARDS).glob("*"):
        if place not in named:
            shutil.rmtree(place, ignore_errors=True)


def rows_like(own: Tensor, rows: Rows) -> Tensor:
    """The rows that this rank holds of a tensor that is sharded as ours is; whole where ours is not sharded."""
    if not isinstance(own, DTensor):
        return rows.whole()
    begin, mine = _first_row(own), own.to_local()
    local = rows.between(begin, begin + mine.shape[0]).to(mine.device)
    return DTensor.from_local(
        local, own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
    )


def _first_row(value: DTensor) -> int:
    """Index of the first row that this rank holds: rows are dealt out in equal runs, the last ones shorter."""
    mesh = value.device_mesh
    run = -(-value.shape[0] // mesh.size())
    return min(run * mesh.get_local_rank(), value.shape[0])


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a tree with every part changed, the outer ones first."""
    changed = change(value)
    if changed is not value or isinstance(changed, Rows):
        return changed
    if isinstance(value, dict):
        return type(value)((key, _mapped(item, change)) for key, item in value.items())
    return [_mapped(item, change) for item in value] if type(value) is list else value


def _together(work: Callable[[], str], path: Path, device: torch.device) -> list[str]:
    """What the work of each rank gives; if one of them could not write, all of them raise.

    Raises:
        NotWrittenError: naming what was wrong on the first rank that could not.
    """
    failure: NotWrittenError | None = None
    try:
        said = work()
    except NotWrittenError as error:
        failure, said = error, f"!{error.errno}!{error.strerror}"
    everyone = gather_texts(said, device)
    if failure is not None:
        raise failure
    for rank, text in enumerate(everyone):
        if text.startswith("!"):
            number, reason = text[1:].split("!", 1)
            raise NotWrittenError(int(number), f"the checkpoint {path} was not written by rank {rank}: {reason}")
    return everyone
