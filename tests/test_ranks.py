"""What ranks agree on: alone, and between two real processes."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch import distributed as dist

from lit_rlhf.ranks import gather_rows, gather_texts, num_ranks, sum_over_ranks


def test_alone():
    counts = torch.tensor([1.0, 2.0])
    assert num_ranks() == 1
    assert torch.equal(sum_over_ranks(counts), counts)
    rows, begin = gather_rows(torch.ones(2, 3))
    assert (rows.shape, begin) == ((2, 3), 0)
    assert gather_texts("\u00e9", torch.device("cpu")) == ["\u00e9"]


def agree(rank, path):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    counts = torch.tensor([1.0 + rank])
    summed = sum_over_ranks(counts)
    assert (num_ranks(), summed.item(), counts.item()) == (2, 3.0, 1.0 + rank)
    mixed = torch.ones((), dtype=(torch.bfloat16, torch.float32)[rank])  # as a rank without rows has them
    assert (sum_over_ranks(mixed).item(), sum_over_ranks(mixed).dtype) == (2.0, mixed.dtype)
    assert gather_rows(mixed[None, None])[0].tolist() == [[1.0], [1.0]]
    for sizes in ((3, 1), (0, 2), (2, 0), (0, 0)):
        rows, begin = gather_rows(torch.full((sizes[rank], 2), float(rank)))
        assert rows.tolist() == [[0.0, 0.0]] * sizes[0] + [[1.0, 1.0]] * sizes[1]
        assert begin == (0 if rank == 0 else sizes[0])
    for texts in (["a", "bcd"], ["", "\u4e2d"], ["", ""]):
        assert gather_texts(texts[rank], torch.device("cpu")) == texts
    dist.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=agree, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
