"""Two processes with uneven shares of each step train what one process trains."""

from __future__ import annotations

import multiprocessing
import os
import socket

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from datamodules.packing import pack_sequences
from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.types import InstructionBatch

OPTIONS = {"tokens": {}, "sequences": {"average": "sequences", "label_smoothing": 0.2}}
# Texts of each step that rank 0 has, and rank 1, and their token budgets. In the third step rank 1 has no rows at all.
SHARES = ((slice(0, 3), slice(3, 8)), (slice(8, 13), slice(13, 16)), (slice(16, 24), slice(24, 24)))
BUDGETS = (1, 10**6)


def run_rank(rank, port, folder, make_module, fit, texts, options, accumulated):
    torch.set_num_threads(1)
    ours = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in ours.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    module = make_module(kind=SFTModule, **options)
    batches = [pack_sequences(texts[share[rank]], BUDGETS[rank], {"dropped/too_long": rank}) for share in SHARES]
    strategy = DDPStrategy(process_group_backend="gloo")
    settings = {"accumulate_grad_batches": accumulated, "use_distributed_sampler": False}
    trainer = fit(module, batches, validation=batches, devices=2, strategy=strategy, **settings)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
    torch.save({"rows": trainer.logger.rows, "weights": weights}, folder / f"rank{rank}.pt")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("average", OPTIONS)
def test_two_ranks_equal_one(make_module, make_texts, fit, tmp_path, average, accumulated):
    texts, options = make_texts(24), OPTIONS[average]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = (port, tmp_path, make_module, fit, texts, options, accumulated)
    processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    module = make_module(kind=SFTModule, **options)
    whole = [pack_sequences([*texts[a], *texts[b]], 10**6, {"dropped/too_long": 1}) for a, b in SHARES]
    alone = fit(module, whole, validation=whole, accumulate_grad_batches=accumulated)
    assert alone.global_step == {1: 3, 2: 2}[accumulated]
    for ours, wanted in zip(ranks[0]["rows"], alone.logger.rows, strict=True):
        assert set(ours) == set(wanted)
        for name in set(wanted) - {"train/tokens_per_second", "train/data/fill", "val/data/fill"}:
            assert ours[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), name
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
            torch.testing.assert_close(ranks[0]["weights"][name], parameter.detach(), rtol=1e-4, atol=1e-6)


def test_no_rows_on_any_rank_is_no_step_of_data(make_module, fit):
    module = make_module(kind=SFTModule)
    module.configure_model()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    fit(module, [InstructionBatch((), {})])
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
