"""What layers compute a step with: copies of weights where they help and have room."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from lit_rlhf.models.layers.lora_linear import Projection
from lit_rlhf.models.layers.step_parts import StepParts


class Parts(NamedTuple):
    """A layer of 2 * 40 weights, 320 bytes in float32, and something else."""

    norm: str
    first: Projection
    second: Projection


def make(device="cpu"):
    return Parts("norm", *(Projection(torch.ones(8, 5, device=device), None) for _ in range(2)))


def copied(parts):
    return [projection.weight.is_mkldnn for projection in parts[1:]]


def test_layers_are_copied_while_there_is_room():
    parts = StepParts(max_copy_bytes=640)
    assert [copied(parts.of(layer, make, torch.float32)) for layer in range(3)] == [[True] * 2] * 2 + [[False] * 2]
    assert parts.of(0, make, torch.float32).norm == "norm"


def test_without_room_nothing_is_copied():
    assert copied(StepParts().of(0, make, torch.float32)) == [False, False]


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.bfloat16), ("meta", torch.float32)])
def test_other_types_and_devices_are_left_as_they_are(device, dtype):
    original = make(device)
    assert StepParts(2**20).of(0, lambda: original, dtype)[1] is original[1]


def test_a_layer_is_looked_at_once():
    parts, calls = StepParts(2**20), []
    for layer in (0, 1, 0, 1):
        assert parts.of(layer, lambda layer=layer: calls.append(layer), torch.float32) is None
    assert calls == [0, 1]
