"""Writing a checkpoint: beside its name first, flushed, then renamed, so that it is there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lit_rlhf.checkpoints.layout import DIGEST_AT, bytes_of, in_order, write_header
from lit_rlhf.checkpoints.tree import flatten

_NOTHING_MORE: Mapping[str, str] = MappingProxyType({})
UNFINISHED = ".part"
"""Ends the name of a checkpoint that is being written."""


class NotWrittenError(OSError):
    """A checkpoint could not be written: the disk is full, a quota is used up, the folder is read-only."""


def write(tree: dict[str, Any], path: Path, metadata: Mapping[str, str] = _NOTHING_MORE) -> str:
    """Write a checkpoint, tensor by tensor: there is never a second copy of all of them in memory.

    Args:
        tree: of dicts, lists, numbers, tensors and the like.
        path: of the file; replaced if it is there. Its folder is made if need be.
        metadata: what else its header says.

    Returns:
        The digest of the file.

    Raises:
        ValueError: for a value that has no place in a checkpoint, naming its path in the tree.
        NotWrittenError: saying how many bytes are needed, how many are free, and where.
    """
    plain, tensors = flatten(tree)
    tensors = in_order(tensors)
    told = {**metadata, "tree": json.dumps(plain, separators=(",", ":"), allow_nan=False)}
    header = write_header(told, tensors)
    needed = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    unfinished = path.with_name(path.name + UNFINISHED)
    with _explained(path, unfinished, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_full_disk(path.parent, needed)
        digest = _write_file(unfinished, header, tensors)
        unfinished.replace(path)
        _flush_folder(path.parent)
    return digest


def remove_unfinished(folder: Path) -> list[str]:
    """Remove what runs that were killed while they wrote have left in a folder.

    Returns:
        Name and size of each.
    """
    removed = []
    for file in sorted(folder.glob(f"*{UNFINISHED}")):
        removed.append(f"{file.name} ({file.stat().st_size:,} bytes)")
        file.unlink()
    return removed


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Find out before writing, where the file system tells.

    Raises:
        OSError: if it says that fewer bytes are free than are needed.
    """
    usage = shutil.disk_usage(folder)
    if usage.total > 0 and usage.free < needed:  # some network file systems say nothing, that is 0
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_file(file: Path, header: bytes, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        digest.update(header)
        stream.write(header)
        for tensor in tensors.values():
            part = bytes_of(tensor)
            stream.write(part)
            digest.update(part)
        stream.seek(DIGEST_AT)
        stream.write(digest.hexdigest().encode())
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """A rename is safe against a power cut once its folder has been flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path, unfinished: Path, needed: int) -> Iterator[None]:
    """Leave nothing behind, and say what was needed."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        folder = next(folder for folder in path.parents if folder.is_dir())
        raise NotWrittenError(
            error.errno,
            f"the checkpoint {path} was not written ({error.strerror or error}): it needs {needed:,} bytes, and "
            f"{shutil.disk_usage(folder).free:,} are free in {folder}; what was saved before is as it was",
        ) from error
