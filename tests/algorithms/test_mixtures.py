"""Mixtures of experts in every algorithm: the load-balancing loss of a whole step, however it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from datamodules.packing import pack_pairs
from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.algorithms.grpo import GRPOModule
from lit_rlhf.algorithms.online_dpo import OnlineDPOModule
from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.algorithms.reinforce import REINFORCEModule
from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.algorithms.rloo import RLOOModule
from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.models.whole import whole
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.strategies.fsdp2 import FSDP2Strategy
from lit_rlhf.types import PromptAndTextBatch, PromptBatch
from tests.tiny_moe import make_mixture

STARTED = {"init": "gaussian", "target_experts": True}
STRATEGIES = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
}
ROUTER = ("aux_loss", "load_max", "load_min", "load_entropy", "dropped_tokens")


@pytest.fixture(scope="session")
def mixture(tmp_path_factory, tiny_tokenizer):
    """Folder of a random Mixtral with the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("mixtral")
    make_mixture("mixtral", vocab_size=len(tiny_tokenizer), eos_token_id=tiny_tokenizer.eos_token_id).save_pretrained(
        folder
    )
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def balanced(make_module, mixture):
    def make(kind, coef=2.0, lr=0.05, **backbone):
        settings = {"name_or_path": mixture, "train_router": True, "router_aux_loss_coef": coef, **backbone}
        return make_module(kind=kind, backbone=settings, lora=STARTED, lr=lr)

    return make


def batches_of(kind, make_batches, make_text_batches, token_budget=10**6):
    return (make_text_batches if kind is SFTModule else make_batches)(16, 8, token_budget)


@pytest.mark.parametrize("kind", [SFTModule, RewardModule, DPOModule], ids=lambda kind: kind.__name__)
def test_no_cut_changes_a_step(balanced, make_batches, make_text_batches, fit, assert_same_run, kind):
    cut, whole = (
        fit(balanced(kind), batches_of(kind, make_batches, make_text_batches, budget)) for budget in (30, 10**6)
    )
    assert_same_run(cut, whole, tolerance=2e-5)
    for name in ROUTER:
        assert len(whole.logger.column(f"train/router/{name}")) == 2


def test_no_cut_changes_a_step_of_all_weights(make_module, mixture, make_batches, fit, assert_same_run):
    backbone = {"name_or_path": mixture, "train_router": True, "router_aux_loss_coef": 2.0}
    cut, whole_step = (
        fit(make_module(backbone=backbone, lora={"enabled": False}, lr=0.05), make_batches(16, 8, budget))
        for budget in (30, 10**6)
    )
    assert_same_run(cut, whole_step, tolerance=2e-5)


def test_accumulated_batches_are_one_step(balanced, make_text_batches, fit, assert_same_run):
    parts = fit(balanced(SFTModule), make_text_batches(16, 4), accumulate_grad_batches=2)
    assert_same_run(parts, fit(balanced(SFTModule), make_text_batches(16, 8)), tolerance=2e-5)


def test_one_step_by_hand(balanced, mixture, make_text_batches, fit):
    """The router of a step without padding, token by token, by transformers' own function, layer by layer."""
    (batch,) = make_text_batches(8, 8)
    module = balanced(SFTModule, coef=0.0)
    module.configure_model()
    plain = AutoModelForCausalLM.from_pretrained(mixture)
    rows, layers = batch.micro_batches[0].forest, None
    starts = [*rows.starts, rows.num_tokens]
    for begin, end in pairwise(starts):
        if begin < end:
            said = plain(input_ids=rows.tokens[None, begin:end], output_router_logits=True).router_logits
            layers = said if layers is None else [torch.cat(pair) for pair in zip(layers, said, strict=True)]
    expected = sum(load_balancing_loss_func((layer,), 4, 2) for layer in layers) / len(layers)
    trainer = fit(module, [batch])
    assert trainer.logger.column("train/router/aux_loss")[0] == pytest.approx(float(expected), rel=1e-5)
    shares = torch.stack([layer.topk(2).indices.flatten().bincount(minlength=4) for layer in layers]) * 4.0
    shares /= 2 * rows.num_tokens
    assert trainer.logger.column("train/router/load_max")[0] == pytest.approx(float(shares.max()))
    assert trainer.logger.column("train/router/load_min")[0] == pytest.approx(float(shares.min()))


def ends(logger, name):
    """What a run logged first, and on average over its last ten steps: single ones go up and down."""
    column = [float(x) for x in logger.column(name)]
    return column[0], sum(column[-10:]) / 10


def test_it_evens_out_the_load_and_0_is_no_loss(balanced, make_text_batches, fit):
    batches = make_text_batches(16, 16) * 30
    without, with_it = (fit(balanced(SFTModule, coef, lr=0.05), batches).logger for coef in (0.0, 1.0))
    (first, last), (first_without, last_without) = (ends(run, "train/router/aux_loss") for run in (with_it, without))
    assert first == first_without
    assert last < first - 0.02
    assert last < last_without - 0.02
    early, late = ends(with_it, "train/router/load_entropy")
    assert late > early


def test_a_frozen_router_is_reached_through_the_layers_below(balanced, make_text_batches, fit):
    frozen = [fit(balanced(SFTModule, coef, train_router=False), make_text_batches(8, 8)) for coef in (0.0, 2.0)]
    weights = [dict(one.lightning_module.named_parameters()) for one in frozen]
    moved = [name for name, p in weights[0].items() if p.requires_grad and not torch.equal(p, weights[1][name])]
    assert any("layers.0" in name for name in moved)
    assert not any("gate" in name for name, p in weights[0].items() if p.requires_grad)


def trained_weights_of(module):
    return {name: whole(p.detach()) for name, p in module.named_parameters() if p.requires_grad}


def router_columns(trainer):
    """What was logged of routers, told or not."""
    return {name: [float(x) for x in trainer.logger.column(f"train/router/{name}")] for name in (*ROUTER, "mismatch")}


def assert_same_on_ranks(ranks, alone, module):
    for name, column in router_columns(alone).items():
        assert ranks[0]["routers"][name] == pytest.approx(column, rel=1e-4, abs=1e-6), name
    for name, weight in trained_weights_of(module).items():
        torch.testing.assert_close(ranks[0]["weights"][name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("quantization", "strategy"), [("none", "ddp"), ("nf4", "ddp"), ("none", "fsdp2")])
def test_two_ranks_train_what_one_trains(balanced, make_pairs, fit, on_ranks, quantization, strategy):
    pairs = make_pairs(12)
    steps = ((slice(0, 2), slice(2, 6)), (slice(6, 12), slice(12, 12)))

    def work(rank):
        module = balanced(DPOModule, quantization=quantization)
        ours = [pack_pairs(pairs[share[rank]], (1, 10**6)[rank]) for share in steps]
        trainer = fit(module, ours, devices=2, strategy=STRATEGIES[strategy](), use_distributed_sampler=False)
        return {"weights": trained_weights_of(module), "routers": router_columns(trainer)}

    ranks = on_ranks(work)
    module = balanced(DPOModule, quantization=quantization)
    alone = fit(module, [pack_pairs([*pairs[a], *pairs[b]], 10**6) for a, b in steps])
    assert_same_on_ranks(ranks, alone, module)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_ranks_replay_what_one_replays(make_policy, mixture, make_prompts, fit, on_ranks, strategy):
    (batch,) = make_prompts(6, 6)

    def learn(prompts, budget, **options):
        module = make_policy(
            kind=GRPOModule,
            backbone={"name_or_path": mixture, "train_router": True, "router_aux_loss_coef": 0.5},
            lora=STARTED,
            sampling={"num_responses": 2},
            updates=UpdateOptions(token_budget=budget, num_epochs=2, num_minibatches=1, routing="replay"),
            lr=0.05,
        )
        trainer = fit(module, [PromptBatch(prompts, {})], **options)
        return module, trainer

    def work(rank):
        share = (batch.prompts[:2], batch.prompts[2:])[rank]
        options = {"devices": 2, "strategy": STRATEGIES[strategy](), "use_distributed_sampler": False}
        module, trainer = learn(share, (40, 10**6)[rank], **options)
        return {"weights": trained_weights_of(module), "routers": router_columns(trainer)}

    ranks = on_ranks(work)
    module, alone = learn(batch.prompts, 10**6)
    assert 0.0 < router_columns(alone)["mismatch"][0] < 0.5
    assert_same_on_ranks(ranks, alone, module)


@pytest.mark.parametrize(
    ("kind", "coef", "routing"),
    [
        *((PPOModule, coef, routing) for coef, routing in ((0.0, "free"), (0.5, "free"), (0.5, "replay"))),
        *((GRPOModule, coef, routing) for coef, routing in ((0.0, "free"), (0.5, "free"), (0.5, "replay"))),
        (RLOOModule, 0.5, "replay"),
        (REINFORCEModule, 0.5, "free"),
        (OnlineDPOModule, 0.5, "free"),
    ],
)
def test_rollouts_cut_as_they_may(make_policy, mixture, make_prompts, fit, assert_same_run, kind, coef, routing):
    def run(budget):
        module = make_policy(
            kind=kind,
            backbone={"name_or_path": mixture, "train_router": True, "router_aux_loss_coef": coef},
            lora=STARTED,
            sampling={"num_responses": 4},
            updates=UpdateOptions(token_budget=budget, max_grad_norm=0.0, num_epochs=1, routing=routing),
            lr=0.01,
        )
        trainer = fit(module, make_prompts(4, 2))
        for row in trainer.logger.rows:
            if kind in (RLOOModule, REINFORCEModule):
                row.pop("rollout/advantages")  # 0 but for rounding
        return trainer

    whole = run(10**6)
    assert_same_run(run(40), whole, tolerance=5e-4)
    # Every pass of the updates is held against the measuring; online DPO learns from pairs alone, which were not kept.
    told = {**dict.fromkeys(ROUTER, 2), "mismatch": 0 if kind is OnlineDPOModule else 2}
    assert {name: len(whole.logger.column(f"train/router/{name}")) for name in told} == told


def test_texts_beside_replayed_responses_are_cut_as_they_may(
    make_policy, mixture, make_prompts, make_text_batches, fit, assert_same_run
):
    def run(budget):
        module = make_policy(
            backbone={"name_or_path": mixture, "train_router": True, "router_aux_loss_coef": 0.5},
            lora=STARTED,
            updates=UpdateOptions(token_budget=budget, max_grad_norm=0.0, num_epochs=1, routing="replay"),
            ptx_coef=0.5,
            lr=0.01,
        )
        (prompts,), (texts,) = make_prompts(4, 4), make_text_batches(4, 4, budget)
        return fit(module, [PromptAndTextBatch(prompts, texts)])

    assert_same_run(run(40), run(10**6), tolerance=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["model", "shared"])
def test_rollouts_cut_as_they_may_where_all_weights_learn(
    make_policy, mixture, make_prompts, fit, assert_same_run, critic
):
    def run(budget):
        module = make_policy(
            backbone={"name_or_path": mixture, "train_router": True, "router_aux_loss_coef": 0.5},
            lora={"enabled": False},
            critic=CriticOptions(kind=critic, lr_factor=1.0),
            updates=UpdateOptions(token_budget=budget, max_grad_norm=0.0, num_epochs=1, routing="replay"),
            lr=0.01,
        )
        return fit(module, make_prompts(4, 2))

    assert_same_run(run(40), run(10**6), tolerance=5e-4)


def test_pairs_are_not_replayed(make_policy, mixture):
    with pytest.raises(ValueError, match=r"updates\.routing is 'replay'.*online DPO has none.*leave it 'free'"):
        make_policy(
            kind=OnlineDPOModule,
            backbone={"name_or_path": mixture},
            sampling={"num_responses": 2},
            updates=UpdateOptions(routing="replay"),
        )


@pytest.mark.parametrize(("precision", "quantization"), [("bf16-mixed", "none"), ("bf16-true", "nf4")])
def test_half_precision(balanced, make_batches, fit, precision, quantization):
    """The numbers of full precision, but for what bfloat16 rounds."""
    half, full = (
        fit(balanced(DPOModule, lr=0.01, quantization=quantization), make_batches(16, 8, 60), precision=name).logger
        for name in (precision, "32-true")
    )
    for name in ("train/loss", "train/router/aux_loss"):
        assert half.column(name) == pytest.approx(full.column(name), rel=0.03)


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("bf16-true", marks=pytest.mark.slow)])
def test_rollouts_in_half_precision(make_policy, mixture, make_prompts, fit, precision):
    module = make_policy(
        kind=PPOModule,
        backbone={"name_or_path": mixture, "train_router": True, "router_aux_loss_coef": 0.5},
        lora=STARTED,
        updates=UpdateOptions(token_budget=60, num_epochs=1, routing="replay"),
        lr=0.01,
    )
    columns = router_columns(fit(module, make_prompts(4, 4), precision=precision))
    assert 1.9 < columns["aux_loss"][-1] < 3.0
    assert columns["mismatch"][0] < 0.2
