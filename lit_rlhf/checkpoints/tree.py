"""A checkpoint's tree as JSON and named tensors, and back.

None, booleans, strings, numbers, lists and dicts with string keys are themselves. Everything else that may stand in a
checkpoint has a tag here, ``{"!tuple": [1, 2]}``; what has none is refused, by its path in the tree. A newcomer is one
line in :data:`TAGS`.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_rlhf.checkpoints.layout import DTYPES

_TENSOR = "!tensor"
_MAPPING = "!dict"


class Tag(NamedTuple):
    """How values of one type are written.

    ``pack`` makes something of a value that has a place in a tree itself, and ``unpack`` makes the value of it again.
    """

    kind: type
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def _dtype(name: str) -> torch.dtype:
    return {str(dtype): dtype for dtype in (*DTYPES, torch.complex64, torch.complex128)}[name]


TAGS = {
    "!int": Tag(int, hex, lambda text: int(text, 16)),  # beyond 63 bits
    "!float": Tag(float, repr, float),  # inf and nan, which JSON lacks
    "!complex": Tag(complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "!bytes": Tag(bytes, lambda value: b64encode(value).decode(), b64decode),
    "!tuple": Tag(tuple, list, tuple),
    "!set": Tag(set, lambda items: sorted(items, key=repr), set),
    "!frozenset": Tag(frozenset, lambda items: sorted(items, key=repr), frozenset),
    "!ordered": Tag(OrderedDict, dict, OrderedDict),
    "!counter": Tag(Counter, dict, Counter),
    "!path": Tag(type(Path()), str, Path),
    "!size": Tag(torch.Size, list, torch.Size),
    "!dtype": Tag(torch.dtype, str, _dtype),
    "!device": Tag(torch.device, str, torch.device),
}
_TAG_OF = {tag.kind: name for name, tag in TAGS.items()}


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Part a tree into what JSON can say and its tensors.

    A tensor that stands in several places, as tied weights do, is kept once, and is one tensor again when read.

    Returns:
        The JSON value, and the tensors by name: their path in the tree.

    Raises:
        ValueError: for a value that has no place in a checkpoint, naming its path.
    """
    walk = _Flattening()
    return walk.plain(tree, ()), walk.tensors


def rebuild(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree that :func:`flatten` parted.

    Raises:
        KeyError: for a tag or a tensor that is not known.
    """
    if type(value) is list:
        return [rebuild(item, tensors) for item in value]
    if type(value) is not dict:
        return value
    tag = next((key for key in value if key.startswith("!")), None)
    if tag is None:
        return {key: rebuild(item, tensors) for key, item in value.items()}
    if tag == _TENSOR:
        return tensors[value[tag]]
    if tag == _MAPPING:
        return {rebuild(key, tensors): rebuild(item, tensors) for key, item in value[tag]}
    return TAGS[tag].unpack(rebuild(value[tag], tensors))


class _Flattening:
    """One walk through a tree."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def plain(self, value: Any, path: tuple[str, ...]) -> Any:
        kind = type(value)
        if _is_plain(value):
            return value
        if kind is list:
            return [self.plain(item, (*path, str(number))) for number, item in enumerate(value)]
        if kind is dict:
            return self._mapping(value, path)
        if isinstance(value, Tensor):
            return {_TENSOR: self._name(value, path)}
        if kind not in _TAG_OF:
            raise _refusal(path, f"a {kind.__module__}.{kind.__qualname__}")
        name = _TAG_OF[kind]
        return {name: self.plain(TAGS[name].pack(value), path)}

    def _mapping(self, value: dict[Any, Any], path: tuple[str, ...]) -> Any:
        items = [(key, self.plain(item, (*path, str(key)))) for key, item in value.items()]
        if all(type(key) is str and not key.startswith("!") for key in value):
            return dict(items)
        return {_MAPPING: [[self.plain(key, (*path, str(key))), item] for key, item in items]}

    def _name(self, tensor: Tensor, path: tuple[str, ...]) -> str:
        """The name that a tensor is stored under; it is stored once, wherever it stands."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
            raise _refusal(path, f"a {type(tensor).__name__} of layout {tensor.layout} on {tensor.device}")
        if tensor.dtype not in DTYPES:
            raise _refusal(path, f"a tensor of {tensor.dtype}")
        place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if tensor.numel() and place in self._names:
            return self._names[place]
        name = "/".join(path).encode("utf-8", "backslashreplace").decode()
        while name in self.tensors or name in ("", "__metadata__"):
            name += "'"
        self._names[place] = name
        self.tensors[name] = tensor.detach()
        return name


def _is_plain(value: Any) -> bool:
    """Whether JSON gives back exactly this value."""
    kind = type(value)
    if kind is int:
        return value.bit_length() < 64
    return value is None or kind in (bool, str) or (kind is float and math.isfinite(value))


def _refusal(path: tuple[str, ...], what: str) -> ValueError:
    return ValueError(
        f"the checkpoint holds {what} at {' / '.join(path) or 'its root'}, which could be read again only by running "
        "code found in the file: keep numbers, strings, bytes, tensors, and lists, tuples, sets and dicts of these"
    )
