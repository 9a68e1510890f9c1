"""What is not sharded goes through unchanged; what is becomes whole on the ranks that ask for it."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lit_rlhf.models.micro_batches import in_step, no_loss
from lit_rlhf.models.whole import is_sharded, whole, whole_state, whole_weights


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))


def test_what_is_whole_already():
    module = layers()
    assert not is_sharded(module)
    assert whole(module[0].weight) is module[0].weight
    state = whole_state(dict(module.named_parameters()))
    assert all(torch.equal(state[name], parameter) for name, parameter in module.named_parameters())
    assert not any(value.requires_grad for value in state.values())
    with whole_weights(module):
        assert torch.equal(module[0].weight, layers()[0].weight)


def as_rank(rank):
    init_process_group("gloo")
    module, mesh = layers(), init_device_mesh("cpu", (2,))
    fully_shard(module[0], mesh=mesh)
    fully_shard(module, mesh=mesh)
    module(torch.zeros(1, 4))
    assert is_sharded(module)
    assert is_sharded(nn.ModuleList([module]))
    assert isinstance(module[0].weight, DTensor)
    found = whole_state(dict(module.named_parameters()))
    with whole_weights(module):
        inside = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    module(torch.zeros(1, 4))
    assert isinstance(module[0].weight, DTensor), "parted again after its forward"
    passes = []
    assert [*in_step(module, "abc"[rank * 2 :], passes.append)] == [*"abc"[rank * 2 :]]
    loss = no_loss(NoTrainer(module))
    loss.backward()
    assert all(parameter.grad is None for parameter in module.parameters()), "no rank waits for them"
    destroy_process_group()
    return {"found": found, "inside": inside, "passes": [[*forest.lengths] for forest in passes]}


class NoTrainer(nn.Module):
    device = torch.device("cpu")

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_two_ranks(on_ranks):
    ranks = on_ranks(as_rank)
    whole_ones = {name: parameter.detach() for name, parameter in layers().named_parameters()}
    assert ranks[1]["found"] == {}
    for found in (ranks[0]["found"], ranks[0]["inside"], ranks[1]["inside"]):
        assert {name: value.tolist() for name, value in found.items()} == {n: p.tolist() for n, p in whole_ones.items()}
    assert [rank["passes"] for rank in ranks] == [[], [[1, 1], [1, 1]]]
