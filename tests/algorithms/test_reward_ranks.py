"""Two processes with uneven shares of each step train what one process trains, and measure what one measures."""

from __future__ import annotations

import multiprocessing
import os
import socket

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lit_rlhf import losses
from lit_rlhf.losses.reward_terms import RewardTerm

RECIPES = {
    "pairs": ({}, {}),
    "objectives": (
        {
            "losses": [RewardTerm(losses.regression_loss), RewardTerm(losses.plackett_luce_loss, 0.5)],
            "objectives": {"good": 0.75, "short": -0.5},
        },
        {"accumulate_grad_batches": 2},
    ),
    "steps": ({"losses": [RewardTerm(losses.step_loss)]}, {}),
}
# Rows of each step that rank 0 has, and its and rank 1's token budget. In the third step rank 1 has no rows at all.
SHARES = ((slice(0, 3), slice(3, 8)), (slice(8, 13), slice(13, 16)), (slice(16, 24), slice(24, 24)))
BUDGETS = (1, 10**6)


def run_rank(rank, port, folder, make_reward, judgements, fit, kind):
    torch.set_num_threads(1)
    ours = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in ours.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    options, how = RECIPES[kind]
    module = make_reward(**options)
    strategy = DDPStrategy(process_group_backend="gloo")
    pack, rows_of = judgements[kind]
    batches = [pack(rows_of(24)[share[rank]], BUDGETS[rank], {"dropped/too_long": rank}) for share in SHARES]
    trainer = fit(
        module, batches, validation=batches, devices=2, strategy=strategy, use_distributed_sampler=False, **how
    )
    state = {name: value for name, value in module.model.state_dict().items() if "base_layer" not in name}
    torch.save({"rows": trainer.logger.rows, "state": state}, folder / f"rank{rank}.pt")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("kind", RECIPES)
def test_two_ranks_equal_one(make_reward, judgements, fit, tmp_path, kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = (port, tmp_path, make_reward, judgements, fit, kind)
    processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    options, how = RECIPES[kind]
    module = make_reward(**options)
    pack, rows_of = judgements[kind]
    whole = [pack([*rows_of(24)[a], *rows_of(24)[b]], 10**6, {"dropped/too_long": 1}) for a, b in SHARES]
    alone = fit(module, whole, validation=whole, **how)
    assert alone.global_step == 3 // how.get("accumulate_grad_batches", 1) + bool(how)
    about_the_cut = {f"{stage}/data/fill" for stage in ("train", "val")} | {"train/tokens_per_second"}
    for ours, wanted in zip(ranks[0]["rows"], alone.logger.rows, strict=True):
        assert set(ours) == set(wanted)
        for name in set(wanted) - about_the_cut:
            assert ours[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), name
    for name, value in module.model.state_dict().items():
        if name in ranks[0]["state"]:
            assert ranks[0]["state"][name].equal(ranks[1]["state"][name]) or value.isnan().all(), name
            torch.testing.assert_close(ranks[0]["state"][name], value, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    assert int(ranks[0]["state"]["score.num_responses"]) == {"pairs": 48, "objectives": 72, "steps": 0}[kind]
