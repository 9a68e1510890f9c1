"""The plugin that makes a Trainer write and read checkpoints this way: ``Trainer(plugins=[SafeCheckpointIO()])``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_rlhf.checkpoints.folder import valid_beside
from lit_rlhf.checkpoints.reading import read
from lit_rlhf.checkpoints.shards import read_sharded, whole_tree
from lit_rlhf.checkpoints.writing import remove_unfinished, write


class SafeCheckpointIO(CheckpointIO):
    """Checkpoints in one safetensors file each, without any pickle, that verify themselves when they are read.

    A file is written beside its name, flushed and renamed: a kill at any moment and a full disk leave the one before.
    Files that Lightning wrote are read too, with ``weights_only=True`` whatever the caller says.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all; Lightning calls this on the first rank alone.

        Args:
            checkpoint: of Lightning.
            path: of the file, on this machine or mounted.
            storage_options: must be None.

        Raises:
            ValueError: for a remote path, or a value that has no place in a checkpoint.
            NotWrittenError: saying how many bytes are needed, how many are free, and where.
        """
        if storage_options is not None:
            raise ValueError(f"SafeCheckpointIO takes no storage_options; it was given {storage_options!r}")
        file = _local(path)
        for name in remove_unfinished(file.parent):
            rank_zero_info(f"removed {file.parent / name}, which a run left that was killed while it wrote")
        write(checkpoint, file)

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, all of it verified before any of it is used.

        Args:
            path: of the file.
            map_location: a device for the tensors; anything else than a device or its name means the CPU.
            weights_only: ignored: nothing else is ever read.

        Raises:
            ValueError: naming the file, what is wrong with it, and which others in its folder can be used.
            FileNotFoundError: if there is no such file.
        """
        file = _local(path)
        try:
            shards = read_sharded(file)
            if shards is not None:
                return whole_tree(shards)
            return read(file, map_location if isinstance(map_location, torch.device | str) else "cpu")
        except ValueError as error:
            others = ", ".join(map(str, valid_beside(file))) or "none"
            raise ValueError(f"{error}; others in its folder that can be used: {others}") from error

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, if it is there."""
        _local(path).unlink(missing_ok=True)


def open_checkpoint(path: _PATH) -> io.BytesIO:
    """A verified checkpoint in the form that Lightning itself reads, in memory.

    For ``load_from_checkpoint``, which asks no plugin: ``DPOModule.load_from_checkpoint(open_checkpoint(path), ...)``.

    Args:
        path: of a checkpoint.

    Raises:
        ValueError: naming the file and what is wrong with it.
        FileNotFoundError: if there is no such file.
    """
    content = io.BytesIO()
    torch.save(SafeCheckpointIO().load_checkpoint(path), content)
    content.seek(0)
    return content


def _local(path: _PATH) -> Path:
    """A path of this machine.

    Raises:
        ValueError: for a remote one.
    """
    if "://" in str(path):
        raise ValueError(
            f"the checkpoint {path} is not on this machine: write to a local or mounted folder, or give the Trainer "
            "Lightning's own plugin, lightning.pytorch.plugins.io.TorchCheckpointIO, whose files carry no checksum"
        )
    return Path(path)
