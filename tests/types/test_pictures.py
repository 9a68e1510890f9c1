"""Pictures: what moves, and what stays."""

from __future__ import annotations

import torch

from lit_rlhf.types import Picture


def test_a_picture_moves_with_all_of_its_inputs():
    picture = Picture({"pixel_values": torch.ones(8, 6), "image_grid_thw": torch.tensor([[1, 4, 2]])}, 2, "digest")
    moved = picture.to(torch.device("meta"))
    assert {name: value.device.type for name, value in moved.inputs.items()} == dict.fromkeys(picture.inputs, "meta")
    assert moved[1:] == (2, "digest")
    assert picture.inputs["pixel_values"].device.type == "cpu"
