"""One process, two with DDP and two with sharded weights train the same, whatever is trained."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from datamodules.packing import pack_pairs
from lit_rlhf.strategies.fsdp2 import FSDP2Strategy

ADAPTERS = {
    "lora": {},
    "nf4": {"backbone": {"quantization": "nf4"}},
    "full": {"lora": {"enabled": False}},
}
STRATEGIES = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
}
# Rows of each step that rank 0 has of eight, the others being rank 1's; in the third step rank 1 has none.
CUTS = (3, 5, 8, 4, 1, 7, 4, 4, 2, 6)
BUDGETS = (30, 10**6)
"""Tokens of a micro-batch of rank 0 and of rank 1: one computes many, the other one."""


def shares(rows, rank):
    """Rows of each step that a rank has; with rank None those of all."""
    steps = [rows[at : at + 8] for at in range(0, len(rows), 8)]
    if rank is None:
        return steps
    return [step[:cut] if rank == 0 else step[cut:] for step, cut in zip(steps, CUTS, strict=True)]


def train(rank, strategy, make, batches_of, fit, **options):
    """What is logged and what becomes of the trained weights."""
    module = make()
    parallel = (
        {} if rank is None else {"devices": 2, "strategy": STRATEGIES[strategy](), "use_distributed_sampler": False}
    )
    trainer = fit(module, batches_of(rank), **parallel, **options)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
    return {"rows": trainer.logger.rows, "weights": {name: checkpoint["state_dict"][name] for name in trained}}


def on_rank(rank, strategy, make, batches_of, fit, options):
    found = train(rank, strategy, make, batches_of, fit, **options)
    whole = {n: w.full_tensor() if strategy == "fsdp2" else w for n, w in found["weights"].items()}
    return {**found, "weights": whole}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_dpo(adapter, strategy, make_module, make_pairs, fit, on_ranks):
    pairs = make_pairs(80)

    def make():
        return make_module(lr=0.05, **ADAPTERS[adapter])

    def batches_of(rank):
        budget = 10**6 if rank is None else BUDGETS[rank]
        return [pack_pairs(rows, budget, {}) for rows in shares(pairs, rank)]

    ranks = on_ranks(on_rank, strategy, make, batches_of, fit, {"gradient_clip_val": 0.5})
    same_training(ranks, train(None, None, make, batches_of, fit, gradient_clip_val=0.5))


def same_training(ranks, alone, tolerance=1e-5):
    about_the_cut = {"train/tokens_per_second", "train/data/fill", "step", "epoch"}
    for ours, wanted in zip(ranks[0]["rows"], alone["rows"], strict=True):
        assert set(ours) == set(wanted)
        for name in set(wanted) - about_the_cut:
            assert ours[name] == pytest.approx(wanted[name], rel=tolerance, abs=tolerance), name
    for rank in ranks:
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=0, atol=tolerance, msg=name)
