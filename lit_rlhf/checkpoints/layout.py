"""The bytes of a checkpoint file: those of a safetensors file whose metadata hold the rest of the tree and a digest.

    8 bytes          length of the header, little-endian
    header           JSON: {"__metadata__": {"sha256": ..., "tree": ...}, name: {"dtype": ..., "shape": ..., ...}, ...}
    data             the tensors, one after another, without a gap

The digest covers the whole file, with zeros where it stands itself. Any reader of safetensors opens such a file.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

FORMAT = "lit_rlhf.checkpoint"
VERSION = 1
NO_DIGEST = "0" * 64
DIGEST_AT = len(b'12345678{"__metadata__":{"sha256":"')
"""Where in the file the 64 letters of the digest begin."""
MAX_HEADER = 100_000_000
"""Bytes: what every reader of safetensors accepts."""

DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""What safetensors calls each dtype, the widest first: in this order every tensor lies aligned."""
_DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}


class Place(NamedTuple):
    """A tensor in the data of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What the first part of a file says."""

    metadata: dict[str, str]
    places: list[Place]


def in_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they lie in a file."""
    wide = list(DTYPES)
    return dict(sorted(tensors.items(), key=lambda item: wide.index(item[1].dtype)))


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of one tensor; only those that lie on another device or are strided are copied."""
    raw: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def write_header(metadata: dict[str, str], tensors: dict[str, Tensor]) -> bytes:
    """The first part of a file, without its digest.

    Args:
        metadata: what else to store.
        tensors: by name, in their order.

    Raises:
        ValueError: if it is larger than readers accept.
    """
    entries: dict[str, Any] = {"__metadata__": {"sha256": NO_DIGEST, "format": FORMAT, "version": str(VERSION)}}
    entries["__metadata__"].update(metadata)
    at = 0
    for name, tensor in tensors.items():
        place = [at, at := at + tensor.nbytes]
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % 64)  # the data begin aligned
    if len(text) > MAX_HEADER:
        raise ValueError(f"what the checkpoint holds beside tensors takes {len(text):,} bytes; {MAX_HEADER:,} is most")
    return len(text).to_bytes(8, "little") + text


def read_header(text: bytes, num_bytes: int) -> Header:
    """Read and check the first part of a file.

    Args:
        text: the header, without its length.
        num_bytes: of the data behind it.

    Raises:
        ValueError: saying what is wrong with it.
    """
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        places = [_place(name, entry) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its header is damaged") from error
    if metadata.get("format") != FORMAT:
        raise ValueError("it is a safetensors file, but no checkpoint")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"its format has version {metadata.get('version')}; this lit_rlhf reads version {VERSION}")
    at = 0
    for place in places:
        if place.begin != at or place.end - at != math.prod(place.shape) * place.dtype.itemsize:
            raise ValueError(f"its header is damaged at {place.name}")
        at = place.end
    if at != num_bytes:
        raise ValueError(f"it has {num_bytes:,} bytes of data, and {at:,} were written: it is cut short or grown")
    return Header(metadata, places)


def _place(name: str, entry: dict[str, Any]) -> Place:
    (begin, end), shape = entry["data_offsets"], tuple(map(int, entry["shape"]))
    if min(shape, default=0) < 0:
        raise ValueError(f"{name} has a negative size")
    return Place(name, _DTYPE_OF[entry["dtype"]], shape, int(begin), int(end))
