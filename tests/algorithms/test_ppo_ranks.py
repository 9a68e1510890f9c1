"""Two processes with uneven shares of the prompts train what one process trains, and measure what one measures."""

from __future__ import annotations

import multiprocessing
import os
import socket

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.types import PromptBatch

RECIPES = {
    "adapter": {"kl": KLOptions(coef=0.2, target=0.5, horizon=50), "scores": ScoreOptions(normalise="running")},
    "shared": {"critic": CriticOptions(kind="shared", lr_factor=1.0), "sampling": {"num_responses": 2}},
}
# Prompts of each iteration that rank 0 has, and the token budgets. In the second iteration rank 1 has none at all.
SHARES = ((slice(0, 3), slice(3, 8)), (slice(8, 13), slice(13, 13)), (slice(13, 15), slice(15, 20)))
BUDGETS = (60, 10**6)


def letters(response):
    return len(response) % 5 - 2.0


def batches_of(prompts, share):
    return [PromptBatch(prompts[0].prompts[part], {}) for part in share]


def make(make_policy, kind, budget):
    return make_policy(
        rewards=[WeightedReward(FunctionReward(letters))],
        updates=UpdateOptions(num_epochs=2, num_minibatches=3, token_budget=budget),
        lr=2e-3,
        **RECIPES[kind],
    )


def run_rank(rank, port, folder, make_policy, prompts, fit, kind):
    torch.set_num_threads(1)
    ours = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in ours.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    module = make(make_policy, kind, BUDGETS[rank])
    batches = batches_of(prompts, [share[rank] for share in SHARES])
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = fit(module, batches, validation=batches, devices=2, strategy=strategy, use_distributed_sampler=False)
    state = {name: value for name, value in module.state_dict().items() if "base_layer" not in name}
    torch.save({"rows": trainer.logger.rows, "state": state}, folder / f"rank{rank}.pt")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("kind", RECIPES)
def test_two_ranks_equal_one(make_policy, make_prompts, fit, tmp_path, kind):
    prompts = make_prompts(20, 20)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = (port, tmp_path, make_policy, prompts, fit, kind)
    processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        process.kill()
        assert process.exitcode == 0
    both = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    module = make(make_policy, kind, 10**6)
    whole = batches_of(prompts, [slice(first.start, second.stop) for first, second in SHARES])
    trainer = fit(module, whole, validation=whole)
    for name, value in module.state_dict().items():
        if "base_layer" in name or "means" in name:
            continue
        for rank in both:
            torch.testing.assert_close(rank["state"][name], value, rtol=2e-4, atol=2e-6, msg=name)
    about_the_cut = ("time/", "rollout/tokens_per_second", "train/tokens_per_second", "rollout/sampler_kl")
    names = {name for row in trainer.logger.rows for name in row if not name.startswith(about_the_cut)}
    for name in names - {"step", "epoch"}:
        found = [row[name] for row in both[0]["rows"] if name in row]
        slack = 0.01 if "clip_fraction" in name else 1e-5  # rounding decides of a token that lies on the edge
        assert found == pytest.approx(trainer.logger.column(name), rel=1e-3, abs=slack), name
