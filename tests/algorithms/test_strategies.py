"""One process, two with DDP and two with sharded weights train the same, whatever is trained and by what."""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from datamodules.packing import pack_pairs, pack_sequences
from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.algorithms.grpo import GRPOModule
from lit_rlhf.algorithms.online_dpo import OnlineDPOModule
from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.algorithms.reinforce import REINFORCEModule
from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.algorithms.rloo import RLOOModule
from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.losses import aot_loss
from lit_rlhf.losses.terms import LossTerm
from lit_rlhf.models.options import CriticOptions, ReferenceOptions
from lit_rlhf.models.whole import whole
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.options import KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.generate_sampler import GenerateSampler
from lit_rlhf.strategies.fsdp2 import FSDP2Strategy
from lit_rlhf.types import PromptAndTextBatch, PromptBatch

ADAPTERS = {
    "lora": {},
    "nf4": {"backbone": {"quantization": "nf4"}},
    "full": {"lora": {"enabled": False}},
    "int8": {"backbone": {"quantization": "int8"}},
}
STRATEGIES = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
}
CUTS = (3, 5, 8, 4, 1, 7, 4, 4, 2, 6)
"""Of the eight rows of each step those of rank 0, the others being rank 1's; in the third step rank 1 has none."""

BUDGETS = (30, 10**6)
"""Tokens of a micro-batch of rank 0 and of rank 1: one computes many, the other one."""


def shares(rows, rank):
    """Rows of each step that a rank has; of all ranks where that is None."""
    steps = [rows[at : at + 8] for at in range(0, len(rows), 8)]
    parts = [(step[:cut], step[cut:]) for step, cut in zip(steps, CUTS, strict=False)]
    return steps if rank is None else [both[rank] for both in parts]


def budget_of(rank):
    return 10**6 if rank is None else BUDGETS[rank]


def letters(response):
    return len(response) % 5 - 2.0


@pytest.fixture
def recipes(make_module, make_pairs, make_texts, make_policy, make_prompts):
    """Name of an algorithm -> (the module that a rank makes with an adapter, the batches of the rank)."""

    def learner(kind, **options):
        def make(rank, adapter):
            module = make_module(kind=kind, lr=0.05, **adapter, **options)
            module.configure_model()  # draws its head
            return module

        return make

    def explorer(kind, **options):
        def make(rank, adapter):
            budget = 60 if rank == 0 else 10**6
            updates = UpdateOptions(num_epochs=2, num_minibatches=2, token_budget=budget)
            rewards = [WeightedReward(FunctionReward(letters))]
            full = (
                {"critic": CriticOptions(kind="model", lr_factor=1.0)}
                if "lora" in adapter and kind is PPOModule
                else {}
            )
            return make_policy(kind, rewards=rewards, updates=updates, lr=2e-3, **adapter, **{**options, **full})

        return make

    def pairs(rank):
        return [pack_pairs(rows, budget_of(rank), {}) for rows in shares(make_pairs(80), rank)]

    def texts(rank):
        return [pack_sequences(rows, budget_of(rank)) for rows in shares(make_texts(80), rank)]

    def prompts(rank):
        (batch,) = make_prompts(32, 32)
        return [PromptBatch(tuple(rows), {}) for rows in shares(batch.prompts, rank)]

    several = {"sampling": {"num_responses": 2}}
    return {
        "sft": (learner(SFTModule), texts),
        "reward": (learner(RewardModule), pairs),
        "dpo": (learner(DPOModule), pairs),
        "ppo": (explorer(PPOModule, kl=KLOptions(coef=0.2), scores=ScoreOptions(normalise="running")), prompts),
        "grpo": (explorer(GRPOModule, **several), prompts),
        "rloo": (explorer(RLOOModule, **several), prompts),
        "reinforce": (explorer(REINFORCEModule), prompts),
        "online_dpo": (explorer(OnlineDPOModule, **several), prompts),
    }


def train(rank, strategy, adapter, precision, recipe, fit, num_ranks=2):
    """What is logged, and what becomes of what is trained, by one of several ranks or (rank None) alone."""
    make, batches_of = recipe
    module = make(rank, ADAPTERS[adapter])
    options = {"precision": precision}
    if rank is not None:
        options |= {"devices": num_ranks, "use_distributed_sampler": False, "strategy": STRATEGIES[strategy]()}
    if module.automatic_optimization:
        options["gradient_clip_val"] = 0.5
    trainer = fit(module, batches_of(rank), validation=batches_of(rank)[:3], **options)
    trained = {name: whole(p.detach()) for name, p in module.named_parameters() if p.requires_grad}
    return {"rows": trainer.logger.rows, "weights": trained}


def same_training(ranks, alone, tolerance=1e-5):
    about_the_cut = (
        "time/",
        "train/tokens_per_second",
        "rollout/tokens_per_second",
        "rollout/sampler_kl",
        "step",
        "epoch",
    )
    names = {name for row in alone["rows"] for name in row if not name.startswith(about_the_cut)} - {"train/data/fill"}
    assert names
    for name in names:
        found, wanted = ([row[name] for row in run["rows"] if name in row] for run in (ranks[0], alone))
        slack = 0.01 if "clip_fraction" in name else 10 * tolerance  # rounding decides of a token on the edge
        assert found == pytest.approx(wanted, rel=100 * tolerance, abs=slack), name
    for rank in ranks:
        assert set(rank["weights"]) == set(alone["weights"])
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=0, atol=tolerance, msg=name)


ALGORITHMS = ("sft", "reward", "dpo", "ppo", "grpo", "rloo", "reinforce", "online_dpo")
QUICK = {("dpo", "lora"), ("reward", "full"), ("sft", "nf4"), ("ppo", "lora")}


def works(algorithm, adapter, strategy):
    marks = () if (algorithm, adapter) in QUICK and strategy == "fsdp2" else pytest.mark.slow
    return pytest.param(algorithm, adapter, strategy, marks=marks)


@pytest.mark.parametrize(
    ("algorithm", "adapter", "strategy"),
    [works(*case) for case in product(ALGORITHMS, ("lora", "nf4", "full"), STRATEGIES)],
)
def test_two_ranks_train_what_one_trains(algorithm, adapter, strategy, recipes, fit, on_ranks):
    recipe = recipes[algorithm]
    ranks = on_ranks(train, strategy, adapter, "32-true", recipe, fit)
    same_training(ranks, train(None, None, adapter, "32-true", recipe, fit))


PRECISIONS = ("bf16-true", "bf16-mixed")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("algorithm", "adapter", "strategy"),
    [
        pytest.param(*case, marks=() if case == ("dpo", "lora", "fsdp2") else pytest.mark.slow)
        for case in product(ALGORITHMS, ("lora", "nf4", "full"), STRATEGIES)
    ],
)
def test_other_precisions(algorithm, adapter, strategy, precision, recipes, fit, on_ranks):
    """The first numbers that are logged are those of one process, as far as bfloat16 goes, and all are finite."""
    recipe = recipes[algorithm]
    ranks = on_ranks(train, strategy, adapter, precision, recipe, fit)
    alone = train(None, None, adapter, precision, recipe, fit)
    names = {name for row in alone["rows"] for name in row}
    loss = next(name for name in ("train/loss", "rollout/score") if name in names)
    found, wanted = ([row[loss] for row in run["rows"] if loss in row] for run in (ranks[0], alone))
    assert found[0] == pytest.approx(wanted[0], rel=0.05, abs=0.05)
    assert all(math.isfinite(value) for value in found)
    assert len(found) == len(wanted)
    for name, weight in ranks[0]["weights"].items():
        assert weight.isfinite().all(), name
        assert torch.equal(weight, ranks[1]["weights"][name])


@pytest.mark.parametrize(
    ("algorithm", "precision"),
    [
        pytest.param(*case, marks=() if case == ("dpo", "32-true") else pytest.mark.slow)
        for case in product(ALGORITHMS, ("32-true", *PRECISIONS))
    ],
)
def test_int8_over_two_whole_copies(algorithm, precision, recipes, fit, on_ranks):
    ranks = on_ranks(train, "ddp", "int8", precision, recipes[algorithm], fit)
    assert all(weight.isfinite().all() for weight in ranks[0]["weights"].values())
    assert all(torch.equal(weight, ranks[1]["weights"][name]) for name, weight in ranks[0]["weights"].items())


def refused(rank, recipe, fit):
    with pytest.raises(ValueError, match=r"take backbone\.quantization 'nf4', or trainer\.strategy 'ddp'") as error:
        train(rank, "fsdp2", "int8", "32-true", recipe, fit)
    return str(error.value)


def test_int8_is_refused_where_weights_are_sharded(recipes, fit, on_ranks):
    assert len(on_ranks(refused, recipes["dpo"], fit)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_four_ranks_train_what_one_trains(algorithm, recipes, fit, on_ranks):
    make, batches_of = recipes[algorithm]

    def quarter(rank):
        if rank is None:
            return batches_of(None)
        halves = batches_of(rank // 2)
        nothing = [type(batch)((), {}) for batch in halves]
        return halves if rank % 2 == 0 else nothing  # two of the four never have a row

    recipe = (make, quarter)
    ranks = on_ranks(train, "fsdp2", "lora", "32-true", recipe, fit, 4, num_ranks=4)
    same_training(ranks, train(None, None, "lora", "32-true", recipe, fit))


@pytest.fixture
def parts(recipes, make_module, make_policy, make_reward, make_prompts, make_texts, tmp_path):
    """What a run may have besides: name -> recipe."""
    pairs, prompts = recipes["dpo"][1], recipes["ppo"][1]
    make_reward(objectives={"good": 1.0}).model.save(tmp_path / "reward")

    def dpo(**options):
        def make(rank, adapter):
            return make_module(lr=0.05, **{name: of(rank) if callable(of) else of for name, of in options.items()})

        return make

    def ppo(kind=PPOModule, rewards=None, **options):
        def make(rank, adapter):
            updates = UpdateOptions(num_epochs=1, num_minibatches=1, token_budget=60 if rank == 0 else 10**6)
            judges = [WeightedReward(reward()) for reward in rewards or [lambda: FunctionReward(letters)]]
            return make_policy(kind, rewards=judges, updates=updates, lr=2e-3, **options)

        return make

    def kept(rank):
        return ReferenceOptions(cache=True, cache_folder=str(tmp_path / ("alone" if rank is None else "both")))

    def half_known(rank):
        """Rows that rank 0 has met before, and rows that rank 1 has not."""
        known, new = pairs(0)[:2], pairs(1)[:4]
        known = [known[0], known[1], known[0], known[1]]
        if rank is None:
            return [type(a)((*a.micro_batches, *b.micro_batches), {}) for a, b in zip(known, new, strict=True)]
        return [known, new][rank]

    def with_texts(rank):
        mixes = [pack_sequences(rows, 20 if rank == 0 else 10**6) for rows in shares(make_texts(32), rank)]
        return [PromptAndTextBatch(batch, mix) for batch, mix in zip(prompts(rank), mixes, strict=True)]

    reward = partial(ModelReward, str(tmp_path / "reward"), normalise=False)
    return {
        "fused": (dpo(backbone={"fused": True}), pairs),
        "checkpointing": (dpo(backbone={"gradient_checkpointing": True, "fused": True}), pairs),
        "padded": (dpo(backbone={"attention": "sdpa"}), pairs),
        "cache": (dpo(reference=kept), half_known),
        "coupled": (dpo(losses=[LossTerm(aot_loss)]), pairs),
        "reward_on_backbone": (ppo(rewards=[reward]), prompts),
        "reward_beside": (ppo(rewards=[partial(reward, placement="separate")]), prompts),
        "generate": (ppo(sampler=GenerateSampler(max_rows=1)), prompts),
        "shared_critic": (ppo(critic=CriticOptions(kind="shared", lr_factor=1.0)), prompts),
        "entropy": (ppo(entropy_coef=0.01, backbone={"fused": True}), prompts),
        "texts": (ppo(ptx_coef=0.5), with_texts),
    }


FAST = ("fused", "cache", "reward_beside", "texts")
PARTS = (*FAST, "checkpointing", "padded", "coupled", "reward_on_backbone", "generate", "shared_critic", "entropy")


@pytest.mark.parametrize("part", [pytest.param(part, marks=() if part in FAST else pytest.mark.slow) for part in PARTS])
def test_parts_of_a_run_on_sharded_weights(part, parts, fit, on_ranks):
    ranks = on_ranks(train, "fsdp2", "lora", "32-true", parts[part], fit)
    same_training(ranks, train(None, None, "lora", "32-true", parts[part], fit))
