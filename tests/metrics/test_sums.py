"""Sums keep their precision in a module that loses its own, are saved, and begin anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_rlhf.metrics.sums import Sums


class Total(Sums):
    def __init__(self):
        super().__init__()
        self.add_sum("total", 2)
        self.add_sum("small", dtype=torch.float32)

    def update(self, values):
        self.total += values
        self.small += values[0]

    def compute(self):
        return self.total


@pytest.mark.parametrize("move", [lambda module: module.to(torch.bfloat16), nn.Module.bfloat16, nn.Module.float])
def test_a_module_that_moves_to_another_dtype_leaves_them_as_they_are(move):
    total = Total()
    total.update(torch.tensor([1.0 + 1e-9, 3.0], dtype=torch.float64))
    holder = nn.ModuleList([total, nn.Linear(1, 1)])
    move(holder)
    assert (total.total.dtype, total.small.dtype) == (torch.float64, torch.float32)
    assert total.compute().tolist() == [1.0 + 1e-9, 3.0]
    total.reset()
    assert total.total.dtype == torch.float64
    assert total.total.tolist() == [0.0, 0.0]


def test_the_device_is_that_of_the_module():
    total = nn.ModuleList([Total()]).to("meta")[0]
    total.reset()
    assert (total.total.device.type, total.device.type, total.total.dtype) == ("meta", "meta", torch.float64)


def test_they_are_part_of_checkpoints():
    first, second = Total(), Total()
    first.update(torch.tensor([0.1, 0.2]))
    assert set(first.state_dict()) == {"total", "small"}
    second.load_state_dict(first.state_dict())
    second.update(torch.tensor([0.1, 0.2]))
    assert second.compute().tolist() == pytest.approx([0.2, 0.4])


@pytest.mark.filterwarnings("error")
def test_sums_of_nothing_and_of_a_checkpoint_are_no_reason_to_warn():
    first, second = Total(), Total()
    assert second.compute().tolist() == [0.0, 0.0]
    first.update(torch.tensor([0.1, 0.2]))
    second = Total()
    second.load_state_dict(first.state_dict())
    assert second.compute().tolist() == pytest.approx([0.1, 0.2])
