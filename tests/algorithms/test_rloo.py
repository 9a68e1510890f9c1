"""RLOO: one step against an independent slow computation, what each knob changes, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_rlhf.algorithms.rloo import RLOOModule
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler

ONE_STEP = UpdateOptions(num_epochs=1, num_minibatches=1, max_grad_norm=0.0)
ENDS = list(range(6, 60))  # so many ids end a response that lengths differ
THREE = {"num_responses": 3, "stop_tokens": ENDS}


def noisy(response):
    return len(response) % 3 - 1.0


def rewarded(function):
    return [WeightedReward(FunctionReward(function))]


class OtherPrecision(CachedSampler):
    """Claims to compute otherwise, and does: its log-probabilities are off by so much per token."""

    is_exact = False

    def __init__(self, gap):
        super().__init__()
        self.gap = gap

    def __call__(self, backbone, request):
        rollouts = super().__call__(backbone, request)
        return rollouts._replace(logprobs=rollouts.logprobs + self.gap * rollouts.response_mask)


@pytest.mark.parametrize("gap", [0.0, 0.2, -0.2])
def test_one_step_by_an_independent_slow_computation(one_step_by_hand, make_prompts, gap):
    """-A grad log pi(y) of whole responses, and of the divergence in the loss, over the number of responses.

    Of a sampler that computes otherwise a response weighs pi / pi_sampler, 2 at most.
    """
    kl = KLOptions(coef=0.3, loss_coef=0.2)

    def loss_of(rows, scored):
        shaped = [float(s) - (not done) for s, done in zip(scored.scores, scored.rollouts.finished, strict=True)]
        rewards = [s - kl.coef * float((p - q).detach().sum()) for s, (p, q) in zip(shaped, rows, strict=True)]
        loss = 0.0
        for number, (p, q) in enumerate(rows):
            group = rewards[number // 3 * 3 : number // 3 * 3 + 3]
            advantage = rewards[number] - (sum(group) - rewards[number]) / 2
            weight = min(2.0, 2.718281828459045 ** (-gap * len(p)))
            loss = loss - weight * advantage * p.sum() + kl.loss_coef * ((p - q) ** 2 / 2).sum()
        return loss / len(rows)

    (batch,) = make_prompts(4, 4)
    sampler = OtherPrecision(gap) if gap else None
    options = {"kl": kl, "updates": ONE_STEP, "sampling": {"temperature": 0.7, **THREE}, "sampler": sampler}
    found, rows = one_step_by_hand(RLOOModule, batch, loss_of, lr=0.02, rewards=rewarded(noisy), **options)
    assert found["rollout/kl"] == pytest.approx(sum(float((p - q).detach().sum()) for p, q in rows) / 12, abs=1e-4)
    assert found["train/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert found["rollout/sampler_kl"] == pytest.approx(gap, abs=1e-5)


def test_groups_of_equal_scores_teach_nothing(make_policy, make_prompts, fit):
    options = {"scores": ScoreOptions(missing_eos_penalty=0.0), "kl": KLOptions(coef=0.0), "updates": ONE_STEP}
    trainer = fit(make_policy(RLOOModule, rewarded(lambda response: 0.9), THREE, **options), make_prompts(4, 2))
    assert trainer.logger.column("train/grad_norm") == [0.0, 0.0]
    assert trainer.logger.column("rollout/groups_without_spread") == [1.0, 1.0]


BASE = {"updates": UpdateOptions(num_epochs=2, num_minibatches=2, max_grad_norm=0.0)}
KNOBS = {
    "kl.coef": {"kl": KLOptions(coef=0.5)},
    "kl.loss_coef": {"kl": KLOptions(loss_coef=0.5)},
    "clipping.clip_range": {"clipping": ClipOptions(clip_range=0.001)},
    "clipping.clip_range_high": {"clipping": ClipOptions(clip_range_high=0.001)},
    "clipping.dual_clip": {"clipping": ClipOptions(clip_range=1e-9, dual_clip=1.0001)},
    "updates.num_epochs": {"updates": replace(BASE["updates"], num_epochs=1)},
    "scores.clip": {"scores": ScoreOptions(clip=0.1)},
    "scores.ignore_unfinished": {"scores": ScoreOptions(ignore_unfinished=True)},
}


def test_turning_a_knob_changes_something(make_policy, make_prompts, fit, trained_weights):
    def trained(**options):
        options = {"optimizer": torch.optim.AdamW, "lr": 1e-2, **BASE, **options}
        module = make_policy(RLOOModule, rewarded(noisy), THREE, **options)
        fit(module, make_prompts(4, 2))
        return trained_weights(module)

    before = trained()
    for knob, options in KNOBS.items():
        after = trained(**options)
        assert any(not torch.equal(before[name], after[name]) for name in before), knob


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampling": {"num_responses": 1}}, r"sampling\.num_responses is 1; RLOO"),
        ({"sampling": THREE, "updates": UpdateOptions(average="sequences")}, r"updates\.average is 'sequences'"),
        ({"sampling": {"temperature": 0.0, **THREE}}, r"sampling\.temperature is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make_policy, options, words):
    with pytest.raises(ValueError, match=words):
        make_policy(RLOOModule, **options)


def test_vowels_are_learnt(make_policy, make_prompts, fit):
    def share_of_vowels(response):
        return sum(response.count(letter) for letter in "aeiou") / max(len(response), 1)

    options = {"optimizer": torch.optim.AdamW, "lr": 2e-2, "lora": {"enabled": False}, "kl": KLOptions(coef=0.0)}
    module = make_policy(RLOOModule, rewarded(share_of_vowels), {"num_responses": 8}, **options)
    scores = fit(module, make_prompts(80, 4)).logger.column("rollout/score")
    assert sum(scores[-3:]) / 3 - sum(scores[:3]) / 3 > 0.2
