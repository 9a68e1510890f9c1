"""Every algorithm learns from rows with pictures: once through the tower, whatever the cut, layout and ranks."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from transformers import AutoTokenizer

import lit_rlhf
from datamodules import PreferenceDataModule, PromptDataModule, SFTDataModule
from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.models.options import BackboneConfig, CriticOptions, LoraOptions
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.sampling.generate_sampler import GenerateSampler
from lit_rlhf.rollout.sampling.request import SamplingOptions

COLOURS = ("red", "green", "blue")
NUM_PICTURES = (1, 3, 0, 1, 2, 1, 0, 1)


def rows(columns):
    """Rows with no picture, one, two and three; all pictures differ."""
    made, shades = [], itertools.count(20, 5)
    for number, count in enumerate(NUM_PICTURES):
        images = [Image.new("RGB", (36 + number, 32), (next(shades), 90, 30 * number)) for _ in range(count)]
        texts = {"prompt": f"{'<image>' * count}What is {number}?", **columns(COLOURS[number % 3], COLOURS[number % 2])}
        made.append({**texts, **({"images": images} if images else {})})
    return made


def preferences(folder, **options):
    data = rows(lambda one, other: {"chosen": f" It is {one}.", "rejected": f" {other} it is not"})
    settings = {"batch_size": 4, "token_budget": 4096, "shuffle_buffer": 0, **options}
    return PreferenceDataModule(train=data, tokenizer=str(folder), **settings)


def prompts(folder):
    data = rows(lambda one, other: {"answer": one})
    return PromptDataModule(train=data, tokenizer=str(folder), batch_size=len(data), shuffle_buffer=0)


def build(kind, folder, seed=0, lora=None, attention="auto", lr=0.05, optimizer=torch.optim.SGD, **options):
    torch.manual_seed(seed)
    lora = LoraOptions(**{"r": 4, "alpha": 8, "init": "gaussian", **(lora or {})})
    config = BackboneConfig(str(folder), attention=attention, lora=lora)
    module = kind(config, optimizer=partial(optimizer, lr=lr), **options)
    module.configure_model()
    return module


def about(response, answer, images):
    """Differs from response to response, and names columns."""
    return sum(map(ord, response + answer)) % 97 / 97 + 0.1 * len(images or [])


def rollout_options(folder, **options):
    settings = {"rewards": [WeightedReward(FunctionReward(about))], "tokenizer": AutoTokenizer.from_pretrained(folder)}
    return {**settings, "sampling": SamplingOptions(max_new_tokens=5, **options)}


CUTS = {
    "tiny_llava": [("forest", 4096, 8), ("forest", 40, 8), ("forest", 60, 4)],
    "tiny_qwen2_vl": [("forest", 4096, 8), ("sdpa", 100, 8), ("forest", 40, 4)],
    "tiny_mllama": [("forest", 4096, 8), ("sdpa", 60, 8), ("forest", 40, 4)],
}
"""Layouts, token budgets and rows per batch that come to the same; the last of them accumulates gradients."""


@pytest.mark.parametrize("folder", CUTS)
def test_the_cut_and_the_layout_change_nothing(folder, request, make_trainer, assert_same_run):
    cuts, folder = CUTS[folder], request.getfixturevalue(folder)
    runs = []
    for attention, budget, size in cuts:
        module = build(DPOModule, folder, attention=attention)
        trainer = make_trainer(max_epochs=2, accumulate_grad_batches=8 // size)
        trainer.fit(module, preferences(folder, batch_size=size, token_budget=budget))
        runs.append(trainer)
        if attention == "forest":
            assert module.model.eyes.num_passes == sum(NUM_PICTURES)  # of both roles and both epochs
    assert_same_run(runs[1], runs[0])
    for name, parameter in runs[2].lightning_module.named_parameters():
        theirs = dict(runs[0].lightning_module.named_parameters())[name]
        assert (parameter - theirs).norm() <= 1e-4 * theirs.norm(), name


def train_rank(rank, folder, make_trainer):
    data = preferences(folder)
    module = build(DPOModule, folder)
    options = {"strategy": DDPStrategy(process_group_backend="gloo"), "use_distributed_sampler": False}
    make_trainer(devices=2, max_epochs=2, **options).fit(module, data)
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def test_two_ranks_equal_one(tiny_llava, make_trainer, on_ranks):
    ranks = on_ranks(train_rank, tiny_llava, make_trainer)
    alone = build(DPOModule, tiny_llava)
    before = {name: p.detach().clone() for name, p in alone.named_parameters() if p.requires_grad}
    make_trainer(max_epochs=2).fit(alone, preferences(tiny_llava))
    for name, parameter in alone.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(ranks[0][name], ranks[1][name])
            torch.testing.assert_close(ranks[0][name], parameter.detach(), rtol=1e-4, atol=1e-6)
            assert not torch.equal(before[name], parameter)


def test_resumed_equals_unbroken(tiny_llava, make_trainer, tmp_path):
    def run(name, max_steps, ckpt_path=None):
        module = build(DPOModule, tiny_llava, lr=1e-2, optimizer=torch.optim.AdamW, lora={"dropout": 0.3})
        saver = ModelCheckpoint(tmp_path / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"callbacks": [saver, RandomState()], "enable_checkpointing": True}
        trainer = make_trainer(max_epochs=-1, max_steps=max_steps, **options)
        trainer.fit(module, preferences(tiny_llava, shuffle_buffer=5), ckpt_path=ckpt_path)
        return module

    whole = run("whole", 5)
    run("stopped", 3)
    again = run("again", 5, tmp_path / "stopped" / "step=3.ckpt")
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("critic", "folder"),
    [*((kind, "tiny_llava") for kind in ("adapter", "shared", "model")), ("adapter", "tiny_mllama")],
)
def test_ppo_sends_a_picture_through_the_tower_once_an_iteration(
    critic, folder, request, make_trainer, trained_weights
):
    folder = request.getfixturevalue(folder)
    updates = UpdateOptions(num_epochs=2, num_minibatches=2)
    options = rollout_options(folder, num_responses=2)
    module = build(lit_rlhf.PPOModule, folder, critic=CriticOptions(kind=critic), updates=updates, **options)
    before = trained_weights(module)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, prompts(folder))
    backbone = module.model.backbone
    assert backbone.eyes.num_passes == sum(NUM_PICTURES)  # drawn, measured, learnt from, in two iterations
    if critic == "model":
        assert module.model.trunk.eyes.num_passes == sum(NUM_PICTURES)
    assert any(not torch.equal(value, before[name]) for name, value in trained_weights(module).items())
    assert abs(trainer.logger.column("rollout/sampler_kl")[0]) < 1e-5


@pytest.mark.parametrize("name", ["GRPOModule", "RLOOModule", "REINFORCEModule", "OnlineDPOModule"])
def test_what_learns_from_rollouts(name, tiny_qwen2_vl, make_trainer, trained_weights):
    module = build(getattr(lit_rlhf, name), tiny_qwen2_vl, **rollout_options(tiny_qwen2_vl, num_responses=2))
    before = trained_weights(module)
    trainer = make_trainer()
    trainer.fit(module, prompts(tiny_qwen2_vl))
    assert module.model.eyes.num_passes == sum(NUM_PICTURES)
    assert any(not torch.equal(value, before[name]) for name, value in trained_weights(module).items())
    assert abs(trainer.logger.column("rollout/sampler_kl")[0]) < 1e-5  # drawn as it is measured


@pytest.mark.parametrize("folder", ["tiny_qwen2_vl", "tiny_mllama"])
def test_responses_drawn_by_generate_are_learnt_from(folder, request, make_trainer):
    folder = request.getfixturevalue(folder)
    options = {**rollout_options(folder), "sampler": GenerateSampler()}
    module = build(lit_rlhf.REINFORCEModule, folder, **options)
    trainer = make_trainer()
    trainer.fit(module, prompts(folder))
    assert abs(trainer.logger.column("rollout/sampler_kl")[0]) < 1e-5


@pytest.mark.parametrize(
    ("kind", "folder"), [("SFTModule", "tiny_llava"), ("RewardModule", "tiny_llava"), ("RewardModule", "tiny_mllama")]
)
def test_what_learns_from_texts(kind, folder, request, make_trainer):
    folder = request.getfixturevalue(folder)
    module = build(getattr(lit_rlhf, kind), folder, lr=5e-3, optimizer=torch.optim.AdamW)
    data = preferences(folder, batch_size=8)
    if kind == "SFTModule":
        texts = rows(lambda one, other: {"response": f" It is {one}."})
        data = SFTDataModule(train=texts, tokenizer=str(folder), batch_size=8, shuffle_buffer=0)
    trainer = make_trainer(max_epochs=15)
    trainer.fit(module, data)
    losses = trainer.logger.column("train/loss")
    assert losses[-1] < losses[0] / 2
    backbone = module.model if kind == "SFTModule" else module.model.backbone
    assert backbone.eyes.num_passes == sum(NUM_PICTURES)
