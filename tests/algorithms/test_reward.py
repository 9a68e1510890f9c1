"""RewardModule in a Trainer: what is trained and what stands still, what is watched, and what stops the run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_rlhf import losses
from lit_rlhf.losses.reward_terms import RewardTerm
from lit_rlhf.metrics.throughput import Throughput
from lit_rlhf.models.heads.reward_model import load_reward_model
from lit_rlhf.types import PreferenceBatch

TWO = {"good": 0.5, "short": -1.0}
TERMS = {
    "pairs": None,
    "graded": [RewardTerm(losses.plackett_luce_loss), RewardTerm(losses.regression_loss, 0.2)],
    "steps": [RewardTerm(losses.step_loss)],
}


def relative(ours, wanted):
    scale = max(1e-12, *map(abs, wanted))
    return max(abs(a - b) for a, b in zip(ours, wanted, strict=True)) / scale


def forest_of(batches):
    return batches[0].micro_batches[0].forest


@torch.no_grad()
def scores_of(module, batches):
    return module.model.scores(forest_of(batches))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backbone": {"fused": True}},
        {"backbone": {"quantization": "nf4"}},
        {"lora": {"use_dora": True}},
        {"lora": {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}},
    ],
)
def test_the_base_stands_still_and_all_else_moves(make_reward, make_judged, fit, options):
    module = make_reward(**options)
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    fit(module, make_judged("pairs", 12, 4))
    assert module.model.score.weight.requires_grad
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_full_fine_tuning_moves_everything(make_reward, make_judged, fit):
    module = make_reward(lora={"enabled": False})
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    assert not any("lm_head" in name for name in before)
    fit(module, make_judged("pairs", 4, 4))
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad
        assert not torch.equal(parameter, before[name]), name


def test_it_learns_a_handful_of_pairs(make_reward, make_judged, fit):
    module = make_reward(optimizer=torch.optim.AdamW, lr=1e-2)
    trainer = fit(module, make_judged("pairs", 6, 6), max_epochs=25, validation=make_judged("pairs", 6, 3))
    assert trainer.logger.column("train/loss")[-1] < 0.05
    final = trainer.logger.rows[-1]
    assert final["val/scores/accuracy"] == 1.0
    assert final["val/loss"] < 0.05
    assert final["val/scores/margin"] > 3.0
    assert final["val/scores/brier"] < 0.01


def test_the_head_learns_while_the_backbone_is_dropped_out(make_reward, make_judged, fit):
    plain, dropped = (fit(make_reward(lora={"dropout": p}), make_judged("pairs", 12, 4)) for p in (0.0, 0.5))
    ours, wanted = dropped.logger.column("train/loss"), plain.logger.column("train/loss")
    assert ours[0] == pytest.approx(wanted[0], rel=1e-6), "the adapter begins as no change"
    assert ours[2] != pytest.approx(wanted[2], rel=1e-5)


@pytest.mark.parametrize("kind", ["pairs", "graded"])
def test_how_scores_spread_is_kept_with_the_model(make_reward, make_judged, fit, make_loader, kind, tmp_path):
    module = make_reward()
    validation = make_judged(kind, 14, 5, 40)
    fit(module, make_judged("pairs", 8, 4), validation=validation)
    parts = [part for batch in validation for part in batch.micro_batches]
    with torch.no_grad():
        scores = torch.cat([module.model.scores(part.forest) for part in parts])
        normalised = torch.cat([module.model.scores(part.forest, normalise=True) for part in parts])
    head = module.model.score
    assert int(head.num_responses) == len(scores)
    assert float(head.mean) == pytest.approx(np.mean(scores.numpy()), rel=1e-5)
    assert float(head.std) == pytest.approx(np.std(scores.numpy(), ddof=1), rel=1e-5)
    assert (float(normalised.mean()), float(normalised.std())) == pytest.approx((0.0, 1.0), abs=1e-4)
    module.model.save(tmp_path)
    loaded = load_reward_model(tmp_path).score
    assert (loaded.mean, loaded.std, loaded.num_responses) == (head.mean, head.std, head.num_responses)


def test_steps_have_no_spread(make_reward, make_judged, fit):
    module = make_reward(losses=TERMS["steps"])
    batches = make_judged("steps", 8, 4)
    fit(module, batches, validation=batches)
    assert not module.model.score.is_measured


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("pairs", {"fused": True, "gradient_checkpointing": True}),
        ("graded", {"fused": True}),
        ("steps", {"gradient_checkpointing": True}),
        ("steps", {"attention": "sdpa"}),
    ],
)
def test_how_it_is_computed_changes_no_number(make_reward, make_judged, fit, assert_same_run, kind, options):
    batches = make_judged(kind, 8, 4)
    plain, other = (fit(make_reward(losses=TERMS[kind], backbone=how), batches) for how in ({}, options))
    assert_same_run(other, plain)


@pytest.mark.parametrize(("precision", "fused"), [("bf16-mixed", True), ("bf16-true", True), ("bf16-true", False)])
def test_half_precision_follows_the_curve(make_reward, make_judged, fit, precision, fused):
    batches = make_judged("pairs", 16, 4)
    full = make_reward(lr=0.01)
    wanted = fit(full, batches).logger
    module = make_reward(lr=0.01, backbone={"fused": fused})
    begun = module.model.score.weight.detach().clone()
    logged = fit(module, batches, precision=precision).logger
    assert relative(logged.column("train/loss"), wanted.column("train/loss")) < 0.02
    head = module.model.score
    assert {value.dtype for name, value in head.state_dict().items() if name != "num_responses"} == {torch.float32}
    moved, expected = head.weight - begun, full.model.score.weight - begun
    assert float((moved - expected).norm() / expected.norm()) < 0.05
    assert not torch.equal(head.weight.detach(), head.weight.detach().bfloat16().float())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        scores = module.model.objective_scores(forest_of(batches))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float()), "the head computed in bfloat16"


@torch.no_grad()
def test_scores_in_bfloat16_are_a_hundredth_off(make_reward, make_judged):
    batches = make_judged("graded", 10, 10)
    wanted = scores_of(make_reward(), batches)
    half = make_reward().to(torch.bfloat16)
    torch.testing.assert_close(scores_of(half, batches), wanted, rtol=1e-2, atol=1e-2)


def spoil(name, change):
    """Changes one number of the parameter whose name ends so."""

    def apply(module):
        with torch.no_grad():
            next(p for n, p in module.named_parameters() if n.endswith(name)).view(-1)[3] = change

    return apply


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("spoilt", ["score.weight", "layers.1.mlp.down_proj.base_layer.weight"])
def test_a_score_that_is_not_finite_stops_the_run(make_reward, make_judged, fit, trained_weights, kind, spoilt):
    module = make_reward(losses=TERMS[kind])
    module.model.prepare()
    spoil(spoilt, math.nan)(module)
    before = trained_weights(module)
    with pytest.raises(FloatingPointError, match=r"a score is not finite at step 0, in one of train:1, train:2"):
        fit(module, make_judged(kind, 2, 2))
    for name, weight in trained_weights(module).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)


def test_rows_of_other_micro_batches_are_not_blamed(make_reward, make_judged, fit):
    module = make_reward()
    module.model.prepare()
    (batch,) = make_judged("pairs", 2, 2, 1)
    token = int(batch.micro_batches[1].forest.tokens[0])
    assert token not in batch.micro_batches[0].forest.tokens
    with torch.no_grad():
        module.model.base.get_input_embeddings().weight[token] = math.inf
    with pytest.raises(FloatingPointError, match=r"not finite at step 0, in one of train:2$"):
        fit(module, [batch])


@pytest.mark.parametrize("found", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run(make_reward, make_judged, fit, trained_weights, found):
    module = make_reward()
    module.model.score.weight.register_hook(lambda gradient: gradient * found)
    before = trained_weights(module)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 0; nothing was updated"):
        fit(module, make_judged("pairs", 4, 4))
    assert all(torch.equal(weight, before[name]) for name, weight in trained_weights(module).items())


def test_scores_that_are_not_finite_are_no_metrics(make_reward, make_judged, make_trainer, make_loader):
    module = make_reward()
    spoil("score.weight", math.inf)(module)
    with pytest.raises(FloatingPointError, match="a score is not finite"):
        make_trainer(logger=False).validate(module, make_loader(make_judged("pairs", 4, 4)), verbose=False)
    assert not module.model.score.is_measured


@pytest.mark.parametrize(
    ("kind", "term", "message"),
    [
        ("pairs", RewardTerm(losses.plackett_luce_loss), "plackett_luce needs lists, which data.kind: pairs does not"),
        ("pairs", RewardTerm(losses.regression_loss), "needs responses, which data.kind: pairs does not give; take"),
        ("pairs", RewardTerm(losses.step_loss), "step needs steps, which .* take data.kind: steps"),
        ("steps", RewardTerm(), "bradley_terry needs pairs, which data.kind: steps does not give; take data.kind: p"),
        ("graded", RewardTerm(losses.step_loss), "step needs steps, which data.kind: graded does not give"),
    ],
)
def test_losses_that_the_data_has_nothing_for(make_reward, make_judged, fit, kind, term, message):
    with pytest.raises(ValueError, match=message):
        fit(make_reward(losses=[term]), make_judged(kind, 4, 4))


def test_objectives_that_the_data_does_not_have(make_reward, make_judged, fit):
    with pytest.raises(ValueError, match=r"names 1 columns? of grades, and model\.objectives are good, short"):
        fit(make_reward(objectives=TWO, losses=TERMS["graded"]), make_judged("graded", 4, 4))
    with pytest.raises(ValueError, match="give at least one name with a weight other than 0"):
        make_reward(objectives={"score": 0.0})


def test_the_gradient_norm_is_watched_and_clipped(make_reward, make_judged, fit, trained_weights):
    trainers = [fit(make_reward(), make_judged("pairs", 8, 4), gradient_clip_val=value) for value in (None, 1e-4, 1e9)]
    norms = [trainer.logger.column("train/grad_norm")[0] for trainer in trainers]
    assert norms[0] == norms[1] == norms[2] > 1e-3
    ends = [trained_weights(trainer.lightning_module) for trainer in trainers]
    assert all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    assert not any(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_what_is_logged_in_training(make_reward, make_judged, fit):
    batch = make_judged("graded", 8, 8)[0]._replace(notes={"dropped/empty_response": 1, "truncated/prompt": 2})
    terms = [RewardTerm(), RewardTerm(losses.regression_loss, 0.5), RewardTerm(losses.regression_loss, 0.25)]
    module = make_reward(losses=terms)
    before = module(batch.micro_batches[0])
    row = fit(module, [batch]).logger.rows[0]
    assert row["step"] == 0
    parts = {name: row[f"train/loss/{name}"] for name in ("bradley_terry", "regression_1", "regression_2")}
    assert row["train/loss"] == pytest.approx(
        parts["bradley_terry"] + 0.5 * parts["regression_1"] + 0.25 * parts["regression_2"], rel=1e-6
    )
    assert parts["regression_1"] == parts["regression_2"] == pytest.approx(row["train/scores/squared_error"], rel=1e-6)
    responses = len(batch.micro_batches[0].rows)
    assert row["train/data/dropped"] == pytest.approx(1 / (responses + 1))
    assert row["train/data/truncated"] == pytest.approx(2 / (responses + 1))
    untied = ~before.ties
    margins = (before.chosen_scores - before.rejected_scores)[untied].detach()
    assert row["train/scores/margin"] == pytest.approx(float(margins.mean()), rel=1e-4)
    assert row["train/scores/accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert row["train/tokens_per_second"] > 0
    assert row["train/lr"] == pytest.approx(0.05)
    assert {"train/scores/accuracy/other", "train/length/chosen", "train/grad_norm"} <= set(row)


def test_metrics_are_over_everything_since_the_last_time(make_reward, make_judged, fit):
    batches = make_judged("pairs", 16, 4)
    curve = fit(make_reward(), batches).logger.column("train/loss")
    seldom = fit(make_reward(), batches, log_every_n_steps=2).logger.column("train/loss")
    assert seldom == pytest.approx([(curve[0] + curve[1]) / 2, (curve[2] + curve[3]) / 2], rel=1e-5)


def test_what_is_logged_of_held_out_examples(make_reward, make_judged, make_trainer, make_loader):
    module = make_reward()
    (metrics,) = make_trainer(logger=False).test(module, make_loader(make_judged("graded", 9, 4)), verbose=False)
    named = {name.removeprefix("test/") for name in metrics}
    assert {"loss", "scores/accuracy", "scores/ece", "scores/brier", "scores/mean", "scores/std"} <= named
    assert {"scores/chosen_std", "scores/length_correlation", "scores/ties", "pairs/train", "pairs/other"} <= named
    pairs = sum(row.num_pairs for row in module.reliability)
    assert metrics["test/pairs/train"] + metrics["test/pairs/other"] == pairs > 0
    assert not module.model.score.is_measured, "test data have no say in the scale"


def test_a_batch_without_rows(make_reward, make_judged, fit):
    empty = PreferenceBatch((), {"dropped/empty_response": 4})
    batches = make_judged("pairs", 8, 4)
    plain = fit(make_reward(), batches)
    holed = fit(make_reward(), [batches[0], empty, batches[1]])
    ours, wanted = holed.logger.column("train/loss"), plain.logger.column("train/loss")
    assert (holed.global_step, ours[0], ours[-1]) == (3, wanted[0], pytest.approx(wanted[1], rel=1e-6))
    assert holed.logger.column("train/data/dropped") == [0.0, 1.0, 0.0]


def test_the_clock_stands_still_while_it_validates(make_reward, make_judged, make_pairs, fit, monkeypatch):
    calls = []

    class Recorded(Throughput):
        def pause(self):
            calls.append("pause")

        def go_on(self):
            calls.append("go on")

        def add(self, num_tokens):
            calls.append(num_tokens)

    monkeypatch.setattr("lit_rlhf.algorithms.reward.Throughput", Recorded)
    batches = make_judged("pairs", 4, 4)
    fit(make_reward(), batches, max_epochs=2, validation=batches)
    rows = sum(len(pair.prompt) * 2 + len(pair.chosen) + len(pair.rejected) for pair in make_pairs(4))
    assert calls == ["pause", "go on", *[rows, "pause", "go on"] * 2]  # the first is the check before training
