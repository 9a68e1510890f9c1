"""Online DPO: one step against an independent slow computation, which pairs are chosen, and what each knob changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from lit_rlhf.algorithms.online_dpo import OnlineDPOModule
from lit_rlhf.losses import aot_loss, hinge_loss, odpo_loss, sft_loss, sigmoid_loss
from lit_rlhf.losses.terms import LossTerm
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import ScoreOptions, UpdateOptions

ENDS = list(range(6, 60))  # so many ids end a response that lengths differ
THREE = {"num_responses": 3, "stop_tokens": ENDS}
ONE_STEP = UpdateOptions(num_epochs=1, num_minibatches=1, max_grad_norm=0.0)
AS_THEY_ARE = ScoreOptions(missing_eos_penalty=0.0)


def noisy(response):
    return len(response) % 3 - 1.0


def rewarded(function):
    return [WeightedReward(FunctionReward(function))]


def slow_pairs(scores):
    """Best and worst of each three, and by how much they differ; none where all are alike."""
    for at in range(0, len(scores), 3):
        group = scores[at : at + 3]
        if max(group) > min(group):
            yield at + group.index(max(group)), at + group.index(min(group)), max(group) - min(group)


def test_one_step_by_an_independent_slow_computation(one_step_by_hand, make_prompts):
    """The mean over pairs of DPO's loss, plus a margin's and that of imitating the chosen response."""
    beta, accuracy = 0.4, []

    def loss_of(rows, scored):
        loss, pairs = 0.0, list(slow_pairs(scored.scores.tolist()))
        assert 0 < len(pairs) < 6
        for best, worst, margin in pairs:
            gains = [(p - q).sum() for p, q in (rows[best], rows[worst])]
            accuracy.append(float(gains[0] > gains[1]))
            loss = loss - logsigmoid(beta * (gains[0] - gains[1]))
            loss = loss - 0.5 * logsigmoid(beta * (gains[0] - gains[1]) - 0.7 * margin)
            loss = loss - 0.3 * rows[best][0].mean()
        return loss / len(pairs)

    losses = [LossTerm(), LossTerm(odpo_loss, 0.5, {"alpha": 0.7}), LossTerm(sft_loss, 0.3)]
    (batch,) = make_prompts(6, 6)
    options = {"rewards": rewarded(noisy), "sampling": {"temperature": 0.7, **THREE}, "scores": AS_THEY_ARE}
    found, _ = one_step_by_hand(
        OnlineDPOModule, batch, loss_of, lr=0.05, losses=losses, beta=beta, updates=ONE_STEP, **options
    )
    assert found["train/rewards/accuracy"] == pytest.approx(sum(accuracy) / len(accuracy))
    assert found["rollout/ties"] == pytest.approx(1.0 - len(accuracy) / 6)
    assert found["train/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert {"train/loss/sigmoid", "train/loss/odpo", "train/loss/sft"} <= found.keys()


def test_the_loss_begins_at_ln_2_and_the_share_of_ties_is_told(make_policy, make_prompts, fit):
    def often_alike(prompts, responses):
        return [float(len(text)) if "What" in prompt else 1.0 for prompt, text in zip(prompts, responses, strict=True)]

    module = make_policy(OnlineDPOModule, rewarded(often_alike), THREE, updates=ONE_STEP, scores=AS_THEY_ARE)
    logger = fit(module, make_prompts(4, 4)).logger
    assert logger.column("train/loss") == pytest.approx([math.log(2.0)], abs=1e-6)
    assert logger.column("rollout/ties") == [0.75]
    assert logger.column("train/rewards/margin") == pytest.approx([0.0], abs=1e-5)


def test_ties_alone_teach_nothing(make_policy, make_prompts, fit, trained_weights):
    module = make_policy(OnlineDPOModule, rewarded(lambda response: 0.1), THREE, updates=ONE_STEP, scores=AS_THEY_ARE)
    module.configure_model()
    before = trained_weights(module)
    trainer = fit(module, make_prompts(4, 2))
    assert trainer.logger.column("train/grad_norm") == [0.0, 0.0]
    assert trainer.logger.column("rollout/ties") == [1.0, 1.0]
    assert all(torch.equal(before[name], after) for name, after in trained_weights(module).items())


def test_unfinished_responses_are_in_no_pair_where_nothing_is_learnt_from_them(make_policy, make_prompts):
    sampling, scores = {"max_new_tokens": 4, **THREE}, ScoreOptions(ignore_unfinished=True)
    module = make_policy(OnlineDPOModule, rewarded(noisy), sampling, scores=scores)
    module.configure_model()
    module.model.prepare()
    scored = module.iterations.collect(module.model, make_prompts(6, 6)[0])
    assert 0 < scored.rollouts.finished.sum() < 18
    pairs = module._pairs(scored, module.iterations.measure(module.model, scored.rollouts))
    assert len(pairs.margins) > 0
    assert pairs.rollouts.finished.all()


BASE = {"updates": UpdateOptions(num_epochs=2, num_minibatches=2, max_grad_norm=0.0)}
KNOBS = {
    "beta": {"beta": 1.0},
    "losses": {"losses": [LossTerm(hinge_loss)]},
    "weight": {"losses": [LossTerm(sigmoid_loss, 0.5)]},
    "updates.num_epochs": {"updates": replace(BASE["updates"], num_epochs=1)},
    "updates.num_minibatches": {"updates": replace(BASE["updates"], num_minibatches=1)},
    "updates.max_kl": {"updates": replace(BASE["updates"], max_kl=1e-9)},
    "scores.missing_eos_score": {"scores": ScoreOptions(missing_eos_score=9.0)},
    "scores.ignore_unfinished": {"scores": ScoreOptions(ignore_unfinished=True)},
    "sampling.temperature": {"sampling": {"temperature": 0.6, **THREE}},
}


def test_turning_a_knob_changes_something_of_its_own(make_policy, make_prompts, fit, trained_weights):
    def trained(**options):
        options = {"sampling": {"max_new_tokens": 4, **THREE}, "lr": 0.02, **BASE, **options}
        module = make_policy(OnlineDPOModule, rewarded(noisy), **options)
        fit(module, make_prompts(6, 6))
        return torch.cat([tensor.flatten() for tensor in trained_weights(module).values()])

    found = {"base": trained()}
    for knob, options in KNOBS.items():
        after = trained(**options)
        assert all(not torch.equal(before, after) for before in found.values()), knob
        found[knob] = after


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampling": {"num_responses": 1}}, r"sampling\.num_responses is 1; online DPO"),
        ({"sampling": THREE, "updates": UpdateOptions(average="sequences")}, r"updates\.average is 'sequences'"),
        ({"sampling": THREE, "losses": [LossTerm(aot_loss)]}, "aot compares pairs of a whole batch"),
    ],
)
def test_what_makes_no_sense_is_refused(make_policy, options, words):
    with pytest.raises(ValueError, match=words):
        make_policy(OnlineDPOModule, **options)


def test_vowels_are_learnt(make_policy, make_prompts, fit):
    def share_of_vowels(response):
        return sum(response.count(letter) for letter in "aeiou") / max(len(response), 1)

    options = {"optimizer": torch.optim.AdamW, "lr": 2e-2, "lora": {"enabled": False}}
    module = make_policy(OnlineDPOModule, rewarded(share_of_vowels), {"num_responses": 4}, **options)
    scores = fit(module, make_prompts(120, 8)).logger.column("rollout/score")
    assert sum(scores[-3:]) / 3 - sum(scores[:3]) / 3 > 0.15
