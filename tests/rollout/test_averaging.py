"""Weights of tokens that sum to one, and whitening, over the responses of all ranks."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch import distributed as dist

from lit_rlhf.rollout.averaging import token_weights, whitened_over_ranks

CPU = torch.device("cpu")
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)


def test_weights_of_tokens_by_hand():
    by_tokens = token_weights(MASK, [0, 3], "tokens", CPU)
    torch.testing.assert_close(by_tokens, torch.tensor([[1, 1, 1, 0], [0] * 4, [0] * 4, [1, 1, 0, 0]]) / 5)
    by_sequences = token_weights(MASK, [0, 2, 3], "sequences", CPU)
    expected = torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0], [0] * 4, [0] * 4, [1 / 4, 1 / 4, 0, 0]])
    torch.testing.assert_close(by_sequences, expected)


@pytest.mark.parametrize("average", ["tokens", "sequences"])
@pytest.mark.parametrize("members", [[0], [0, 1, 3], [0, 1, 2, 3]])
def test_weights_sum_to_one(average, members):
    assert float(token_weights(MASK, members, average, CPU).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("average", ["tokens", "sequences"])
@pytest.mark.parametrize("members", [[], [2]])
def test_nothing_weighs_nothing(average, members):
    assert not token_weights(MASK, members, average, CPU).any()
    assert token_weights(MASK[:0], [], average, CPU).shape == (0, 4)


def test_whitening_reads_responses_alone():
    values = torch.where(MASK, torch.tensor([[1.0, 2.0, 3.0, 0.0]] * 4), float("nan"))
    found = whitened_over_ranks(values, MASK)
    known = values[MASK]
    expected = (known - known.mean()) / known.std(correction=0)
    torch.testing.assert_close(found[MASK], expected, rtol=1e-4, atol=1e-5)
    assert not found[~MASK].any()
    assert whitened_over_ranks(values[2:3], MASK[2:3]).isnan().all(), "nothing to go by: as they were"


SHARES = ((slice(0, 1), slice(1, 4)), (slice(0, 4), slice(4, 4)))


def over_ranks(rank, path):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    values = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for shares in SHARES:
        mask, mine = MASK[shares[rank]], values[shares[rank]]
        members = list(range(len(mask)))
        weights = [token_weights(mask, members, average, CPU) for average in ("tokens", "sequences")]
        found.append([*weights, whitened_over_ranks(mine, mask)])
    dist.destroy_process_group()
    torch.save(found, path / f"{rank}.pt")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_ranks_weigh_and_whiten_as_one(tmp_path):
    """Strategies average gradients over ranks: what two ranks weigh together is twice what one does."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=over_ranks, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    values = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(0))
    alone = [2 * token_weights(MASK, range(4), average, CPU) for average in ("tokens", "sequences")]
    alone.append(whitened_over_ranks(values, MASK))
    for first, second in zip(*ranks, strict=True):
        for ours, others, wanted in zip(first, second, alone, strict=True):
            torch.testing.assert_close(torch.cat([ours, others]), wanted, rtol=1e-5, atol=1e-6)
