"""REINFORCE: one step against an independent slow computation, the moving baseline, and what each knob changes."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from lit_rlhf.algorithms.reinforce import REINFORCEModule
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import ClipOptions, KLOptions, ScoreOptions, UpdateOptions

ENDS = {"stop_tokens": list(range(6, 60))}  # so many ids end a response that lengths differ
ONE_STEP = UpdateOptions(num_epochs=1, num_minibatches=1, max_grad_norm=0.0)


def noisy(response):
    return len(response) % 3 - 1.0


def rewarded(function):
    return [WeightedReward(FunctionReward(function))]


def slow_returns(rewards, gamma):
    return [sum(gamma**k * reward for k, reward in enumerate(rewards[t:])) for t in range(len(rewards))]


@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, False), ({"whiten": True, "gamma": 0.9}, True), ({"baseline": "none", "gamma": 0.8}, False)],
)
def test_one_step_by_an_independent_slow_computation(one_step_by_hand, make_prompts, options, scale):
    """-(R - b) grad log pi of each token, over the number of tokens; one response per prompt is enough."""
    kl, gamma = KLOptions(coef=0.3), options.get("gamma", 1.0)
    found_returns = []

    def loss_of(rows, scored):
        returns = []
        for (p, q), score, done in zip(rows, scored.scores, scored.rollouts.finished, strict=True):
            rewards = [-kl.coef * float(d) for d in (p - q).detach()]
            rewards[-1] += float(score) - (not done)
            returns.append(slow_returns(rewards, gamma))
        everything = [value for row in returns for value in row]
        found_returns.extend(everything)
        usual = 0.0 if options.get("baseline") == "none" else sum(everything) / len(everything)
        spread = statistics.pstdev(everything) if scale else 1.0
        advantages = [(torch.tensor(row) - usual) / spread for row in returns]
        return -sum((a * p).sum() for (p, _), a in zip(rows, advantages, strict=True)) / len(everything)

    (batch,) = make_prompts(6, 6)
    options = {"kl": kl, "updates": ONE_STEP, "rewards": rewarded(noisy), "sampling": ENDS, **options}
    found, rows = one_step_by_hand(REINFORCEModule, batch, loss_of, **options)
    assert found["rollout/returns"] == pytest.approx(sum(found_returns) / len(found_returns), abs=1e-4)
    assert found["rollout/num_responses"] == len(rows) == 6
    assert found["train/ratio_max"] == pytest.approx(1.0, abs=1e-5)


def test_the_moving_baseline_is_that_of_the_iterations_before(make_policy):
    """It is a mean over tokens, which an iteration without any leaves alone."""
    module = make_policy(REINFORCEModule, baseline="moving", momentum=0.75)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    means = ([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]], [[4.0, 5.0, 99.0], [6.0, 99.0, 99.0]])  # 3 and 5
    assert [float(module._usual(torch.tensor(returns), mask)) for returns in means] == pytest.approx([3.0, 3.0])
    before, nobody = module.moving_mean.past.clone(), torch.zeros(0, 1)
    module._usual(nobody, nobody.bool())
    assert torch.equal(module.moving_mean.past, before)
    assert before.tolist() == pytest.approx([0.25 * (0.75 * 3.0 + 5.0), 0.25 * 1.75])


def test_equal_scores_teach_nothing(make_policy, make_prompts, fit):
    module = make_policy(
        REINFORCEModule,
        rewarded(lambda response: 0.5),
        ENDS,
        scores=ScoreOptions(missing_eos_penalty=0.0),
        kl=KLOptions(coef=0.0),
        updates=ONE_STEP,
        whiten=True,
    )
    assert fit(module, make_prompts(6, 3)).logger.column("train/grad_norm") == [0.0, 0.0]


BASE = {"updates": UpdateOptions(num_epochs=2, num_minibatches=2, max_grad_norm=0.0)}
KNOBS = {
    "baseline none": {"baseline": "none"},
    "baseline moving": {"baseline": "moving"},
    "momentum": {"baseline": "moving", "momentum": 0.1},
    "gamma": {"gamma": 0.9},
    "whiten": {"whiten": True},
    "kl.coef": {"kl": KLOptions(coef=0.5)},
    "kl.loss_coef": {"kl": KLOptions(loss_coef=0.5)},
    "clipping.clip_range": {"clipping": ClipOptions(clip_range=0.001)},
    "updates.num_epochs": {"updates": replace(BASE["updates"], num_epochs=1)},
    "updates.average": {"updates": replace(BASE["updates"], average="sequences")},
    "entropy_coef": {"entropy_coef": 0.1},
}


def test_turning_a_knob_changes_something_of_its_own(make_policy, make_prompts, fit, trained_weights):
    def trained(**options):
        # SGD, as AdamW forgets scales; three iterations, as the first of a moving baseline has no past, and the
        # second one past alone.
        module = make_policy(REINFORCEModule, rewarded(noisy), ENDS, **{"lr": 0.1, **BASE, **options})
        fit(module, make_prompts(9, 3))
        return torch.cat([tensor.flatten() for tensor in trained_weights(module).values()])

    found = {"base": trained()}
    for knob, options in KNOBS.items():
        after = trained(**options)
        assert all(not torch.equal(before, after) for before in found.values()), knob
        found[knob] = after


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"whiten": True, "baseline": "moving"}, "baseline 'batch', not 'moving'"),
    ],
)
def test_what_makes_no_sense_is_refused(make_policy, options, words):
    with pytest.raises(ValueError, match=words):
        make_policy(REINFORCEModule, **options)


def test_vowels_are_learnt(make_policy, make_prompts, fit):
    def share_of_vowels(response):
        return sum(response.count(letter) for letter in "aeiou") / max(len(response), 1)

    plain = {"optimizer": torch.optim.AdamW, "lr": 2e-2, "lora": {"enabled": False}, "kl": KLOptions(coef=0.0)}
    module = make_policy(REINFORCEModule, rewarded(share_of_vowels), whiten=True, **plain)
    scores = fit(module, make_prompts(480, 32)).logger.column("rollout/score")
    assert sum(scores[-3:]) / 3 - sum(scores[:3]) / 3 > 0.15
