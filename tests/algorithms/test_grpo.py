"""GRPO: one step against an independent slow computation, groups that teach nothing, and what each knob changes."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from lit_rlhf.algorithms.grpo import GRPOModule
from lit_rlhf.callbacks.export import AdapterExport
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler

ONE_STEP = UpdateOptions(num_epochs=1, num_minibatches=1, max_grad_norm=0.0, average="sequences")
ENDS = list(range(6, 60))  # so many ids end a response that lengths differ
THREE = {"num_responses": 3, "stop_tokens": ENDS}
NO_KL = KLOptions(coef=0.0)


def noisy(response):
    return len(response) % 3 - 1.0


def rewarded(function):
    return [WeightedReward(FunctionReward(function))]


def slow_advantages(rewards, scale):
    """Of groups of three, by loops."""
    found = []
    for at in range(0, len(rewards), 3):
        group = rewards[at : at + 3]
        for reward in group:
            deviation = reward - sum(group) / 3
            spread = {"group": statistics.stdev(group), "batch": statistics.stdev(rewards), "none": 1.0 - 1e-4}[scale]
            found.append(0.0 if spread == 0.0 else deviation / (spread + 1e-4))
    return found


@pytest.mark.parametrize(("scale", "average"), [("group", "sequences"), ("batch", "tokens"), ("none", "sequences")])
def test_one_step_by_an_independent_slow_computation(one_step_by_hand, make_prompts, scale, average):
    """At the first update ratios are 1: the gradient is -A grad log pi, plus that of the divergence (k2's)."""
    kl = KLOptions(coef=0.3, loss_coef=0.2, loss_estimator="k3+")

    def loss_of(rows, scored):
        shaped = [float(s) - (not done) for s, done in zip(scored.scores, scored.rollouts.finished, strict=True)]
        rewards = [s - kl.coef * float((p - q).detach().sum()) for s, (p, q) in zip(shaped, rows, strict=True)]
        num_tokens, loss = sum(len(p) for p, _ in rows), 0.0
        for (p, q), advantage in zip(rows, slow_advantages(rewards, scale), strict=True):
            token_losses = -advantage * (p - p.detach()).exp() + kl.loss_coef * (p - q) ** 2 / 2
            loss = loss + token_losses.sum() / (num_tokens if average == "tokens" else len(p) * len(rows))
        return loss

    (batch,) = make_prompts(4, 4)
    options = {"kl": kl, "scale": scale, "updates": replace(ONE_STEP, average=average)}
    sampling = {"temperature": 0.7, **THREE}
    found, rows = one_step_by_hand(GRPOModule, batch, loss_of, rewards=rewarded(noisy), sampling=sampling, **options)
    assert found["rollout/kl"] == pytest.approx(sum(float((p - q).detach().sum()) for p, q in rows) / 12, abs=1e-4)
    assert found["train/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert found["rollout/num_responses"] == 12
    assert found["rollout/length"] == pytest.approx(sum(len(p) for p, _ in rows) / 12)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_of_equal_scores_teach_nothing(make_policy, make_prompts, fit, trained_weights, scale):
    """Not even what rounding leaves of the mean of three times 0.9."""
    scores = ScoreOptions(missing_eos_penalty=0.0)
    module = make_policy(
        GRPOModule, rewarded(lambda response: 0.9), THREE, scores=scores, kl=NO_KL, scale=scale, updates=ONE_STEP
    )
    module.configure_model()
    before = trained_weights(module)
    trainer = fit(module, make_prompts(4, 2))
    assert trainer.logger.column("train/grad_norm") == [0.0, 0.0]
    assert trainer.logger.column("rollout/groups_without_spread") == [1.0, 1.0]
    assert all(torch.equal(before[name], after) for name, after in trained_weights(module).items())


def test_groups_without_spread_are_counted(make_policy, make_prompts, fit):
    def often_alike(prompts, responses):
        return [float(len(text)) if "What" in prompt else 1.0 for prompt, text in zip(prompts, responses, strict=True)]

    module = make_policy(GRPOModule, rewarded(often_alike), THREE, updates=ONE_STEP)
    assert fit(module, make_prompts(4, 4)).logger.column("rollout/groups_without_spread") == [0.75]


class OtherPrecision(CachedSampler):
    """Claims to compute otherwise, and does: its log-probabilities are off."""

    is_exact = False

    def __call__(self, backbone, request):
        rollouts = super().__call__(backbone, request)
        return rollouts._replace(logprobs=rollouts.logprobs - 0.3 * rollouts.response_mask)


BASE = {"updates": UpdateOptions(num_epochs=2, num_minibatches=2, max_grad_norm=0.0)}
KNOBS = {
    "scale batch": {"scale": "batch"},
    "scale none": {"scale": "none"},
    "kl.coef": {"kl": KLOptions(coef=0.5, loss_coef=0.04)},
    "kl.loss_coef": {"kl": KLOptions(coef=0.0, loss_coef=0.5)},
    "clipping.clip_range": {"clipping": ClipOptions(clip_range=0.01)},
    "clipping.clip_range_high": {"clipping": ClipOptions(clip_range_high=0.001)},
    "clipping.dual_clip": {"clipping": ClipOptions(clip_range=1e-9, dual_clip=1.0001)},
    "updates.num_epochs": {"updates": replace(BASE["updates"], num_epochs=1)},
    "updates.average": {"updates": replace(BASE["updates"], average="sequences")},
    "scores.clip": {"scores": ScoreOptions(clip=0.1)},
    "scores.ignore_unfinished": {"scores": ScoreOptions(ignore_unfinished=True)},
    "sampler": {"sampler": OtherPrecision()},
    "entropy_coef": {"entropy_coef": 0.1},
    "seed": {"seed_of_draws": 1},
}


@pytest.fixture
def trained(make_policy, make_prompts, fit, trained_weights):
    """What two iterations make of the weights, with settings that differ from the base ones."""

    def run(seed_of_draws=0, **options):
        options = {"optimizer": torch.optim.AdamW, "lr": 1e-2, **BASE, **options}
        module = make_policy(GRPOModule, rewarded(noisy), THREE, **options)
        module.iterations.seed = module.iterations.collector.seed = seed_of_draws
        fit(module, make_prompts(4, 2))
        return trained_weights(module)

    return run


def test_turning_a_knob_changes_something(trained):
    before = trained()
    for knob, options in KNOBS.items():
        after = trained(**options)
        assert any(not torch.equal(before[name], after[name]) for name in before), knob


def test_one_response_has_nothing_to_be_compared_with(make_policy):
    with pytest.raises(ValueError, match=r"sampling\.num_responses is 1; GRPO compares .* at least 2"):
        make_policy(GRPOModule, sampling={"num_responses": 1})


def test_a_mistyped_scale_is_refused(make_policy, make_prompts, fit):
    with pytest.raises(ValueError, match="'group', 'batch' or 'none', got 'median'"):
        fit(make_policy(GRPOModule, sampling=THREE, scale="median"), make_prompts(2, 2))


def test_what_was_trained_is_in_the_folder_of_the_run(make_policy, make_prompts, fit, tiny_tokenizer, tmp_path):
    module = make_policy(GRPOModule, sampling=THREE)
    fit(module, make_prompts(2, 2), callbacks=[AdapterExport(str(tmp_path), tiny_tokenizer)])
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= {f.name for f in tmp_path.iterdir()}


def test_vowels_are_learnt(make_policy, make_prompts, fit):
    def share_of_vowels(response):
        return sum(response.count(letter) for letter in "aeiou") / max(len(response), 1)

    options = {"optimizer": torch.optim.AdamW, "lr": 2e-2, "lora": {"enabled": False}, "kl": NO_KL}
    module = make_policy(GRPOModule, rewarded(share_of_vowels), {"num_responses": 8}, **options)
    scores = fit(module, make_prompts(80, 4)).logger.column("rollout/score")
    assert sum(scores[-3:]) / 3 - sum(scores[:3]) / 3 > 0.2


def test_the_entropy_bonus_keeps_entropy_up(make_policy, make_prompts, fit):
    """Where all responses score alike the bonus alone has a gradient; with its sign turned entropy would collapse."""

    def entropies(coefficient):
        module = make_policy(
            kind=GRPOModule,
            rewards=[WeightedReward(FunctionReward(alike))],
            kl=KLOptions(coef=0.0, loss_coef=0.0),
            sampling={"num_responses": 2},
            optimizer=torch.optim.AdamW,
            lr=2e-2,
            lora={"enabled": False},
        )
        module.entropy_coef = coefficient
        return fit(module, make_prompts(32, 4)).logger.column("rollout/entropy")

    up, down = entropies(1.0), entropies(-1.0)
    assert up[0] == down[0]
    assert up[-1] > up[0] - 0.02
    assert down[-1] < up[-1] - 0.3


def alike(response):
    return 0.0
