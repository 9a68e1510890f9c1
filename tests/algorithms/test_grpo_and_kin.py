"""What GRPO, RLOO, REINFORCE and online DPO have in common: no cut changes a number, and a killed run goes on."""

from __future__ import annotations

import copy
import multiprocessing
import os
import socket
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from datamodules import PromptDataModule
from lit_rlhf.algorithms.grpo import GRPOModule
from lit_rlhf.algorithms.online_dpo import OnlineDPOModule
from lit_rlhf.algorithms.reinforce import REINFORCEModule
from lit_rlhf.algorithms.rloo import RLOOModule
from lit_rlhf.callbacks.checkpoints import IterationCheckpoint
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.losses import odpo_loss, sft_loss
from lit_rlhf.losses.terms import LossTerm
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.schedules import WarmupDecay
from lit_rlhf.types import InstructionBatch, PromptAndTextBatch, PromptBatch

ENDS = list(range(6, 60))  # so many ids end a response that lengths differ
KINDS = {
    "grpo": (GRPOModule, {"scale": "batch", "kl": KLOptions(coef=0.2, target=0.5, horizon=50, loss_coef=0.1)}),
    "rloo": (RLOOModule, {"kl": KLOptions(coef=0.2, target=0.5, horizon=50), "scores": ScoreOptions("running")}),
    "reinforce": (REINFORCEModule, {"baseline": "moving", "entropy_coef": 0.01}),
    "reinforce++": (REINFORCEModule, {"whiten": True, "gamma": 0.95}),
    "online dpo": (OnlineDPOModule, {"losses": [LossTerm(odpo_loss), LossTerm(sft_loss, 0.1)], "beta": 0.5}),
}
SAMPLING = {"num_responses": 3, "stop_tokens": ENDS}


def letters(response):
    return len(response) % 5 - 2.0


def make(make_policy, name, budget=10**6, **options):
    kind, own = KINDS[name]
    updates = UpdateOptions(num_epochs=2, num_minibatches=2, token_budget=budget)
    rewards = [WeightedReward(FunctionReward(letters))]
    return make_policy(kind, rewards, SAMPLING, **{"lr": 2e-2, "updates": updates, **own, **options})


@pytest.mark.parametrize("name", KINDS)
def test_the_cut_into_micro_batches_changes_nothing(make_policy, make_prompts, fit, assert_same_run, name):
    def run(budget):
        module = make(make_policy, name, budget, lora={"init": "gaussian"})
        module.configure_model()
        torch.manual_seed(3)
        for key, parameter in module.named_parameters():
            if "lora_B" in key:  # the adapter leaves its beginning, where rounding decides which of a pair is likelier
                parameter.data.normal_(std=0.05)
        trainer = fit(module, make_prompts(8, 4))
        for row in trainer.logger.rows:
            if "reinforce" in name:
                row.pop("rollout/advantages")  # 0 but for rounding
        return trainer

    assert_same_run(run(1), run(10**6), tolerance=5e-5)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_trained_moves_and_nothing_else_does(make_policy, make_prompts, fit, name):
    module = make(make_policy, name)
    module.configure_model()
    before = {key: tensor.clone() for key, tensor in module.model.state_dict().items()}
    trained = {key for key, parameter in module.model.named_parameters() if parameter.requires_grad}
    trainer = fit(module, make_prompts(6, 3), validation=make_prompts(3, 3))
    moved = {key for key, tensor in module.model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == trained
    assert all("lora" in key for key in moved)
    assert trainer.logger.column("train/num_updates") == [4.0, 4.0]
    assert trainer.logger.column("val/num_responses")[-1] == 3.0  # one response to each held-out prompt


@pytest.mark.parametrize("name", KINDS)
def test_resumed_equals_unbroken(make_policy, make_trainer, tiny_tokenizer, tmp_path, name):
    rows = [{"prompt": f"Question {n}: what is {n} and {n}?"} for n in range(7)]

    def run(folder, ckpt_path=None, seed=0):
        data = PromptDataModule(train=rows, tokenizer=copy.deepcopy(tiny_tokenizer), batch_size=3, shuffle_buffer=5)
        schedule = partial(WarmupDecay, warmup_steps=2, decay="cosine")
        adam = {"optimizer": torch.optim.AdamW, "lr_scheduler": schedule, "lr": 5e-3, "seed": seed}
        module = make(make_policy, name, **adam)
        saver = IterationCheckpoint(folder, every_n_iterations=1, save_top_k=-1)
        trainer = make_trainer(
            callbacks=[saver, RandomState()], enable_checkpointing=True, max_epochs=2, default_root_dir=folder
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module, trainer

    whole, unbroken = run(tmp_path / "whole")
    assert int(whole.iterations.number) == 6
    for stop in (2, 3):  # inside an epoch, and at its end
        again, resumed = run(tmp_path / f"again{stop}", tmp_path / "whole" / f"iteration-{stop}.ckpt", seed=0)
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
        for column in ("rollout/score", "rollout/kl", "rollout/kl_coef", "train/lr", "train/grad_norm"):
            found, wanted = resumed.logger.column(column), unbroken.logger.column(column)
            assert found == wanted[stop:], column


@pytest.mark.parametrize("name", KINDS)
def test_texts_beside_the_prompts_are_refused_in_training_and_left_out_elsewhere(make_policy, make_prompts, fit, name):
    (prompts,) = make_prompts(3, 3)
    mixed = PromptAndTextBatch(prompts, InstructionBatch((), {}))
    with pytest.raises(ValueError, match=r"only PPOModule mixes in \(ptx_coef\)"):
        fit(make(make_policy, name), [mixed], validation=[mixed])


# Prompts of each iteration that rank 0 has, and the token budgets. In the second iteration rank 1 has none at all.
SHARES = ((slice(0, 2), slice(2, 5)), (slice(5, 8), slice(8, 8)), (slice(8, 9), slice(9, 12)))
BUDGETS = (60, 10**6)


def run_rank(rank, port, folder, make_policy, prompts, fit, name):
    torch.set_num_threads(1)
    ours = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({key: str(value) for key, value in ours.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    module = make(make_policy, name, BUDGETS[rank])
    batches = [PromptBatch(prompts[share[rank]], {}) for share in SHARES]
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = fit(module, batches, devices=2, strategy=strategy, use_distributed_sampler=False)
    state = {key: value for key, value in module.state_dict().items() if "base_layer" not in key}
    torch.save({"rows": trainer.logger.rows, "state": state}, folder / f"rank{rank}.pt")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("name", KINDS)
def test_two_ranks_equal_one(make_policy, make_prompts, fit, tmp_path, name):
    """With uneven shares of the prompts, and one rank without any."""
    prompts = make_prompts(12, 12)[0].prompts
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = (port, tmp_path, make_policy, prompts, fit, name)
    processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        process.kill()
        assert process.exitcode == 0
    both = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    module = make(make_policy, name)
    trainer = fit(module, [PromptBatch(prompts[one.start : two.stop], {}) for one, two in SHARES])
    for key, value in module.state_dict().items():
        if "base_layer" not in key and "means" not in key:
            for rank in both:
                torch.testing.assert_close(rank["state"][key], value, rtol=2e-4, atol=2e-6, msg=key)
    about_the_cut = ("time/", "rollout/tokens_per_second", "train/tokens_per_second", "rollout/sampler_kl")
    names = {key for row in trainer.logger.rows for key in row if not key.startswith(about_the_cut)}
    for column in names - {"step", "epoch"}:
        found = [row[column] for row in both[0]["rows"] if column in row]
        slack = 0.02 if "clip_fraction" in column else 1e-5  # rounding decides of a token that lies on the edge
        assert found == pytest.approx(trainer.logger.column(column), rel=1e-3, abs=slack), column
