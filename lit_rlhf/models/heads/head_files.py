"""Score heads and value heads read out of any folder: ours, PEFT's, transformers', TRL's and LLaMA-Factory's.

A folder's files are opened for the head alone; the other tensors in them stay on the disk.

Shape letters: K numbers that a head gives (one per objective; a value head gives one), H hidden size.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

HeadKind = Literal["score", "v_head"]

CHECKPOINTS = (
    "adapter_model.safetensors",
    "value_head.safetensors",
    "model.safetensors",
    "adapter_model.bin",
    "value_head.bin",
    "pytorch_model.bin",
)
"""Where heads are looked for. Each may also be in parts, named in an index ``<name>.index.json``."""

_WRAPPED = r"(?:(?:base_model|model|module|pretrained_model)\.)*"
_COPY = r"(?:\.modules_to_save(?:\.[^.]+)?)?"  # PEFT's trained copy, with the adapter's name in older files
_KEYS = {
    "score": re.compile(rf"{_WRAPPED}score{_COPY}\.weight"),
    "v_head": re.compile(rf"{_WRAPPED}v_head{_COPY}\.summary\.weight"),
}
_CLASSIFIER = re.compile(rf"{_WRAPPED}classifier{_COPY}(?:\.out_proj)?\.weight")


class HeadFile(NamedTuple):
    """A head as a file holds it.

    Args:
        weight: (K, H) float32.
        bias: (K,) float32; None where the file has none.
        file: where it was found.
        key: of the weight in that file.
    """

    weight: Tensor
    bias: Tensor | None
    file: Path
    key: str


def read_head(
    folder: Path, num_objectives: int | None = 1, kinds: Sequence[HeadKind] = ("score", "v_head")
) -> HeadFile | None:
    """Find the head that a folder holds: a score head before a value head, safetensors before ``.bin``.

    Args:
        folder: of an adapter or of a whole model.
        num_objectives: how many numbers the head must give for a text; None = any.
        kinds: "score" is the head of a reward model, "v_head" that of TRL's and LLaMA-Factory's value models.

    Returns:
        The head; None where there is none.

    Raises:
        ValueError: if a file cannot be read, the folder holds heads that differ, a head has the wrong shape or numbers
            that are not finite, or there is only the head of a classifier.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder '{folder}'")
    checkpoints = list(_checkpoints(folder))
    found = [_head(checkpoint, key) for kind in kinds for checkpoint, key in _matches(checkpoints, _KEYS[kind])]
    if not found:
        _refuse_classifier(checkpoints)
        return None
    first = found[0]
    for other in found[1:]:
        if not _same(first, other):
            raise ValueError(
                f"two heads that differ: '{first.key}' in {first.file} and '{other.key}' in {other.file}; "
                "keep the one that belongs to the model"
            )
    if num_objectives is not None and len(first.weight) != num_objectives:
        raise ValueError(
            f"{_named(first)} is {tuple(first.weight.shape)}: it gives {len(first.weight)} numbers for a text, and "
            f"{num_objectives} is expected; a reward head gives one number per objective"
        )
    return first


def check_head(head: HeadFile, hidden_size: int, where: str) -> None:
    """Refuse a head that was made for another backbone.

    Args:
        head: as it was read.
        hidden_size: of the backbone (H).
        where: names the backbone in the message.

    Raises:
        ValueError: naming the file and both sizes.
    """
    if head.weight.shape[1] != hidden_size:
        raise ValueError(
            f"{_named(head)} reads hidden states of size {head.weight.shape[1]}, "
            f"and those of '{where}' have {hidden_size}: the head belongs to another backbone"
        )


Checkpoint = dict[str, Path]
"""The file that holds each tensor of a checkpoint."""


def _checkpoints(folder: Path) -> Iterator[Checkpoint]:
    for name in CHECKPOINTS:
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            yield dict.fromkeys(_keys(whole), whole)
        if index.is_file():
            yield _in_parts(index)


def _in_parts(index: Path) -> Checkpoint:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {key: index.parent / name for key, name in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} cannot be read: a JSON object with a 'weight_map' is needed") from error


def _matches(checkpoints: list[Checkpoint], pattern: re.Pattern[str]) -> list[tuple[Checkpoint, str]]:
    return [(checkpoint, key) for checkpoint in checkpoints for key in checkpoint if pattern.fullmatch(key)]


def _head(checkpoint: Checkpoint, key: str) -> HeadFile:
    bias_key = key.removesuffix("weight") + "bias"
    bias = _tensor(checkpoint, bias_key) if bias_key in checkpoint else None
    head = HeadFile(_tensor(checkpoint, key), bias, checkpoint[key], key)
    shape = tuple(head.weight.shape)
    if head.weight.dim() != 2 or 0 in shape or (bias is not None and bias.shape != shape[:1]):
        biased = "" if bias is None else f" with a bias of {tuple(bias.shape)}"
        raise ValueError(
            f"{_named(head)} is {shape}{biased}; a head is (objectives, hidden size), its bias (objectives)"
        )
    return head


def _tensor(checkpoint: Checkpoint, key: str) -> Tensor:
    file = checkpoint[key]
    tensor = _one(file, key)
    if not tensor.is_floating_point():
        raise ValueError(f"'{key}' in {file} holds {tensor.dtype}; a head must be saved as floating-point numbers")
    if not tensor.isfinite().all():
        raise ValueError(f"'{key}' in {file} holds numbers that are not finite (NaN or infinity)")
    return tensor.to(torch.float32, copy=True)  # a copy, as the file may be written over


def _keys(file: Path) -> list[str]:
    if file.suffix == ".bin":
        return list(_pickled(file))
    with _readable(file), safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def _one(file: Path, key: str) -> Tensor:
    with _readable(file):
        if file.suffix == ".bin":
            return _pickled(file)[key]
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor(key)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        # Older files, which are no zip archives, cannot be mapped into memory.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # what is raised depends on what the file asks for
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} cannot be read as tensors alone: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; a dict of tensors by name is needed")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if sparse := [key for key, value in tensors.items() if value.layout is not torch.strided]:
        raise ValueError(f"{file} holds the sparse tensor '{sparse[0]}', whose indices may point anywhere")
    return tensors


def _refuse_classifier(checkpoints: list[Checkpoint]) -> None:
    for checkpoint, key in _matches(checkpoints, _CLASSIFIER):
        shape = tuple(_one(checkpoint[key], key).shape)
        raise ValueError(
            f"'{key}' in {checkpoint[key]} is {shape}: the head of a classifier over labels, not of a reward model, "
            "whose 'score.weight' gives one number per objective"
        )


def _same(one: HeadFile, other: HeadFile) -> bool:
    if not torch.equal(one.weight, other.weight):
        return False
    zeros = one.weight.new_zeros(len(one.weight))
    return torch.equal(*(zeros if head.bias is None else head.bias for head in (one, other)))


def _named(head: HeadFile) -> str:
    return f"the head '{head.key}' in {head.file}"
