"""Reading a checkpoint: nothing of it is used before all of it has been verified, and nothing in it is ever run."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lit_rlhf.checkpoints.layout import DIGEST_AT, MAX_HEADER, NO_DIGEST, Header, Place, bytes_of, read_header
from lit_rlhf.checkpoints.tree import rebuild

_ZIP = b"PK\x03\x04"
_CHUNK = 1 << 24
"""Bytes read at a time where nothing is kept."""


SHARDS = "shards"
"""Folder of the files that a checkpoint names, and the entry of its header that does."""


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ours, or one that Lightning wrote.

    Lightning's own files carry no digest; what they have, a CRC-32 of each part, is checked.

    Args:
        path: of the file.
        device: where the tensors go.

    Returns:
        The tree that was written; of a checkpoint in shards, what is not sharded, see
        :mod:`lit_rlhf.checkpoints.shards`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and what is wrong with it.
    """
    if _is_zip(path):
        verify(path)
        return _read_zip(path, device)
    tensors: dict[str, Tensor] = {}
    header = _scan(path, tensors)
    _verify_shards(path, header)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        return rebuild(json.loads(header.metadata["tree"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refusal(path, f"it holds something unknown ({error})") from error


def verify(path: Path) -> None:
    """Read all of a file and keep nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and what is wrong with it.
    """
    if not _is_zip(path):
        _verify_shards(path, _scan(path, None))
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _refusal(path, "it is cut short or damaged") from error
    if damaged is not None:
        raise _refusal(path, f"its part {damaged} is not what was written")


class Shards(NamedTuple):
    """The files beside a checkpoint that hold its sharded tensors, one per rank that wrote it.

    Args:
        files: of the ranks, in their order.
        digests: of these files.
        begins: of each file, the first row of each tensor in it.
    """

    files: list[Path]
    digests: list[str]
    begins: list[list[int]]


def shards_of(path: Path) -> Shards | None:
    """The shards of a checkpoint; None where it has none.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it is damaged where it names them.
    """
    if _is_zip(path):
        return None
    with path.open("rb") as stream:
        return _named(path, _read_header(path, stream, hashlib.sha256()))


def _named(path: Path, header: Header) -> Shards | None:
    if SHARDS not in header.metadata:
        return None
    told = json.loads(header.metadata[SHARDS])
    folder = path.parent / SHARDS / Path(told["folder"]).name
    files = [folder / f"rank-{rank}.ckpt" for rank in range(len(told["digests"]))]
    return Shards(files, told["digests"], told["begins"])


def _verify_shards(path: Path, header: Header) -> None:
    """Read all shards of a checkpoint and keep nothing.

    Raises:
        ValueError: naming the shard that is damaged, is not there, or belongs to another checkpoint.
    """
    shards = _named(path, header)
    for file, digest in zip(shards.files, shards.digests, strict=True) if shards is not None else ():
        if not file.is_file():
            raise _refusal(path, f"its shard {file} is not there")
        if _scan(file, None).metadata["sha256"] != digest:
            raise _refusal(path, f"its shard {file} is that of another checkpoint")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_ZIP)) == _ZIP


def _read_zip(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # what is raised depends on what the file asks for
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _refusal(path, f"it cannot be read without running code that it names: {reason}") from error


def _scan(path: Path, tensors: dict[str, Tensor] | None) -> Header:
    """Go once through a file and compare its digest; fills ``tensors`` on the way.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        header = _read_header(path, stream, digest)
        for place in header.places:
            if tensors is None:
                _skim(stream, place.end - place.begin, digest)
            else:
                tensors[place.name] = _read_tensor(stream, place, digest)
    if digest.hexdigest() != header.metadata.get("sha256"):
        raise _refusal(path, "its checksum does not fit: some of its bytes changed after it was written")
    return header


def _read_header(path: Path, stream: IO[bytes], digest: _Digest) -> Header:
    size = os.fstat(stream.fileno()).st_size
    length = stream.read(8)
    num_bytes = int.from_bytes(length, "little")
    if size == 0:
        raise _refusal(path, "it is empty")
    if len(length) < 8 or num_bytes > MAX_HEADER or stream.peek(1)[:1] != b"{":  # type: ignore[attr-defined]
        raise _refusal(path, "it is neither a checkpoint of lit_rlhf nor one of Lightning, or its beginning is damaged")
    if 8 + num_bytes > size:
        raise _refusal(path, f"it is cut short: {size:,} bytes are left, and its header alone takes {num_bytes:,}")
    text = stream.read(num_bytes)
    try:
        header = read_header(text, size - 8 - num_bytes)
    except ValueError as error:
        raise _refusal(path, str(error)) from error
    at = DIGEST_AT - 8
    digest.update(length + text[:at] + NO_DIGEST.encode() + text[at + len(NO_DIGEST) :])
    return header


def _read_tensor(stream: IO[bytes], place: Place, digest: _Digest) -> Tensor:
    raw = torch.empty(place.end - place.begin, dtype=torch.uint8)
    view = bytes_of(raw)
    stream.readinto(view)  # type: ignore[attr-defined]
    digest.update(view)
    return raw.view(place.dtype).reshape(place.shape)


def _skim(stream: IO[bytes], num_bytes: int, digest: _Digest) -> None:
    for at in range(0, num_bytes, _CHUNK):
        digest.update(stream.read(min(_CHUNK, num_bytes - at)))


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(f"the checkpoint {path} cannot be used: {reason}")
