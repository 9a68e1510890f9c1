"""A model sharded over two processes gives the tokens of one process, and is sharded again afterwards."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from lit_rlhf.models.whole import whole_weights
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.strategies.sharding import shard_model
from lit_rlhf.types import Forest, Segment

RAGGED = ((1, 40, 5), (12,))  # lengths of the prompts of each rank
LIMITS = (12, 3)  # most tokens of a response of each rank


def requests_of(make_request):
    return [
        make_request(lengths=lengths, stop_tokens=range(2, 30), max_new_tokens=limit, num_responses=2)
        for lengths, limit in zip(RAGGED, LIMITS, strict=True)
    ]


def run_rank(rank, path, backbone, requests):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    shard_model(backbone, dist.init_device_mesh("cpu", (2,)))
    for bounds in ({}, {"max_rows": 1}):
        rollouts = CachedSampler(**bounds)(backbone, requests[rank])
        assert all(isinstance(parameter, DTensor) for parameter in backbone.parameters())
    torch.save(rollouts._asdict() | {"prompts": None}, path / f"rank{rank}.pt")
    with whole_weights(backbone):
        assert not any(isinstance(parameter, DTensor) for parameter in backbone.parameters())
    layers = backbone.base.get_decoder().layers
    forest = Forest.pack([[Segment(range(5, 10), [False] * 5), Segment(range(10, 15), [True] * 5, 0)]])
    with torch.no_grad():
        backbone.hidden_states(forest)
    assert all(isinstance(parameter, DTensor) for parameter in layers.parameters())
    # Training goes on: with gradients of the adapters, gathered layer by layer.
    backbone.token_logprobs(forest).logprobs.sum().backward()
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    assert trained
    assert all(isinstance(parameter.grad, DTensor) for parameter in trained)
    assert all(isinstance(parameter, DTensor) for parameter in backbone.parameters())
    dist.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("fused", [True, False])
def test_two_ranks_draw_what_one_draws(fused, sampled_backbone, make_request, tmp_path):
    requests = requests_of(make_request)
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path, sampled_backbone(fused=fused), requests)
    processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    backbone = sampled_backbone(fused=fused)
    for rank, request in enumerate(requests):
        expected, drawn = CachedSampler()(backbone, request), torch.load(tmp_path / f"rank{rank}.pt")
        assert torch.equal(drawn["tokens"], expected.tokens)
        assert torch.equal(drawn["finished"], expected.finished)
        torch.testing.assert_close(drawn["logprobs"], expected.logprobs, rtol=0, atol=1e-5)
