"""A tensor goes where it is sent, and stays what it is."""

from __future__ import annotations

import torch

from lit_rlhf.models.heads.float32 import without_cast


def test_it_moves_and_is_not_cast():
    tensor = torch.tensor([1.0 + 2**-20])
    assert without_cast(lambda x: x.to(torch.bfloat16))(tensor) is tensor or torch.equal(
        without_cast(lambda x: x.to(torch.bfloat16))(tensor), tensor
    )
    moved = without_cast(lambda x: x.to("meta", torch.float16))(tensor)
    assert (moved.device.type, moved.dtype) == ("meta", torch.float32)


def test_what_is_not_cast_is_passed_through():
    assert without_cast(lambda x: x + 1)(torch.zeros(1)).item() == 1.0
