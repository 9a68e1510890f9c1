"""DPOModule in a Trainer: one step is one step however it is cut, references hold still, bad numbers stop the run."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from lit_rlhf import losses
from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.losses.terms import LossTerm
from lit_rlhf.metrics.throughput import Throughput
from lit_rlhf.models.options import ReferenceOptions
from lit_rlhf.types import PreferenceBatch

OBJECTIVES = {
    "sigmoid": None,
    "sigmoid_and_sft": [LossTerm(), LossTerm(losses.sft_loss, 0.3)],
    "aot": [LossTerm(losses.aot_loss)],
    "aot_unpaired_and_ipo": [LossTerm(losses.aot_unpaired_loss, 0.5), LossTerm(losses.ipo_loss)],
}


def relative(ours, wanted):
    scale = max(1e-12, *map(abs, wanted))
    return max(abs(a - b) for a, b in zip(ours, wanted, strict=True)) / scale


def same_run(first, second, tolerance=1e-5):
    """Whether two Trainers logged the same curves, and their modules ended with the same weights."""
    for name in ("train/loss", "train/rewards/margin", "train/rewards/ties", "train/kl", "train/grad_norm"):
        ours, wanted = first.logger.column(name), second.logger.column(name)
        assert len(wanted) > 1
        assert relative(ours, wanted) < tolerance, name
    theirs = dict(second.lightning_module.named_parameters())
    for name, parameter in first.lightning_module.named_parameters():
        assert (parameter - theirs[name]).norm() <= 3 * tolerance * theirs[name].norm(), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_step_is_one_step_however_it_is_cut(make_module, make_batches, fit, objective):
    options = {"losses": OBJECTIVES[objective]}
    whole = fit(make_module(**options), make_batches(48, 16))
    assert len(set(whole.logger.column("train/loss"))) == 3
    for size, budget, accumulated in ((16, 60, 1), (16, 1, 1), (4, 10**6, 4), (4, 40, 4)):
        cut = fit(make_module(**options), make_batches(48, size, budget), accumulate_grad_batches=accumulated)
        assert cut.global_step == 3
        same_run(cut, whole)
    padded = {"backbone": {"attention": "eager"}}
    same_run(fit(make_module(**padded, **options), make_batches(48, 16)), whole)


@pytest.mark.parametrize("objective", ["sigmoid_and_sft", "aot"])
def test_the_last_window_may_be_shorter(make_module, make_batches, fit, objective):
    options = {"losses": OBJECTIVES[objective]}
    whole = fit(make_module(**options), make_batches(20, 8), max_epochs=2)
    accumulated = fit(make_module(**options), make_batches(20, 4), accumulate_grad_batches=2, max_epochs=2)
    assert whole.global_step == accumulated.global_step == 6
    same_run(accumulated, whole)


def test_the_loss_of_a_step_by_hand(make_module, make_batches, fit):
    """From the module's own log-probabilities, outside of any Trainer."""
    module = make_module(losses=[LossTerm(losses.ipo_loss, 2.0), LossTerm(losses.sft_loss, 0.5)], beta=0.2, lr=0.5)
    module.configure_model()
    (batch,) = make_batches(6, 6)
    read = module(batch.micro_batches[0])
    ipo = losses.ipo_loss(
        read.chosen_logratios, read.rejected_logratios, read.chosen_lengths, read.rejected_lengths, beta=0.2
    )
    expected = 2.0 * ipo.mean() - 0.5 * read.chosen_logprobs.sum() / read.chosen_lengths.sum()
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(expected, list(trained.values()))
    wanted = [p.detach() - 0.5 * gradient for p, gradient in zip(trained.values(), gradients, strict=True)]
    trainer = fit(module, [batch])
    torch.testing.assert_close([parameter.detach() for parameter in trained.values()], wanted, rtol=1e-5, atol=1e-7)
    assert trainer.logger.column("train/loss") == pytest.approx([float(expected)], rel=1e-6)
    assert trainer.logger.column("train/loss/ipo") == pytest.approx([float(ipo.mean())], rel=1e-6)


@pytest.mark.parametrize("kind", ["fresh", "dora", "pissa", "nf4", "adapter", "full"])
def test_the_loss_begins_at_ln_2(make_module, make_batches, fit, make_trainer, make_loader, tmp_path, kind):
    options = {
        "fresh": {"lora": {"dropout": 0.3}},
        "dora": {"lora": {"dropout": 0.3, "use_dora": True}},
        "nf4": {"lora": {"dropout": 0.3}, "backbone": {"quantization": "nf4"}},
        "full": {"lora": {"enabled": False}},
    }.get(kind, {"lora": {"init": "pissa" if kind == "pissa" else "default"}})
    if kind == "adapter":
        first = make_module()
        fit(first, make_batches(8, 4))
        first.model.save(tmp_path / "adapter")
        options = {"backbone": {"adapter": str(tmp_path / "adapter")}}
        with_dropout = make_module(**options, lora={"dropout": 0.3})
        (metrics,) = make_trainer(logger=False).validate(with_dropout, make_loader(make_batches(8, 4)), verbose=False)
        assert metrics["val/loss"] == pytest.approx(math.log(2), abs=1e-6)
    trainer = fit(make_module(**options), make_batches(12, 4, 50))
    curve = trainer.logger.column("train/loss")
    assert curve[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(curve[1] - math.log(2)) > 1e-4
    assert trainer.logger.column("train/kl")[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"backbone": {"quantization": "nf4"}}, {"lora": {"use_dora": True}}])
def test_the_base_stands_still_and_all_else_moves(make_module, make_batches, fit, options):
    module = make_module(**options)
    module.configure_model()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    fit(module, make_batches(12, 4))
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_it_learns_a_handful_of_pairs(make_module, make_batches, fit):
    module = make_module(optimizer=torch.optim.AdamW, lr=2e-2, beta=0.5)
    trainer = fit(module, make_batches(6, 6), max_epochs=30, validation=make_batches(6, 3))
    assert trainer.logger.column("train/loss")[-1] < 0.35
    final = trainer.logger.rows[-1]
    assert final["val/rewards/accuracy"] == 1.0
    assert final["val/loss"] < 0.35
    assert final["val/rewards/margin"] > 1.0


@pytest.mark.parametrize("full", [False, True])
def test_a_moving_reference_goes_on_after_a_restart(make_module, make_batches, fit, trained_weights, tmp_path, full):
    options = {"reference": ReferenceOptions(sync_steps=2, mixup=0.5), "lora": {"enabled": not full}}
    batches = make_batches(16, 4)
    still = fit(make_module(lora=options["lora"]), batches, max_epochs=2)
    whole_module = make_module(**options)
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    whole = fit(whole_module, batches, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
    curves = whole.logger.column("train/loss"), still.logger.column("train/loss")
    assert curves[0][:2] == curves[1][:2]
    assert all(ours != theirs for ours, theirs in zip(curves[0][2:], curves[1][2:], strict=True))
    again = make_module(**options, seed=1)
    resumed = fit(again, batches, max_epochs=2, ckpt_path=tmp_path / "step=4.ckpt")  # saved at a step that moves
    assert resumed.logger.column("train/loss") == curves[0][4:]
    for name, parameter in whole_module.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name


def test_a_moving_reference_moves_once_per_step(make_module, make_batches, fit, monkeypatch):
    module = make_module(reference=ReferenceOptions(sync_steps=1))
    module.configure_model()
    moved = []
    monkeypatch.setattr(module.model, "move_reference", moved.append)
    empty = PreferenceBatch((), {"dropped/empty_response": 4})
    batches = make_batches(16, 4)
    fit(module, [empty, *batches[:3]], accumulate_grad_batches=2)
    assert moved == [0.6, 0.6]


def test_kept_reference_log_probabilities(make_module, make_batches, fit, tmp_path):
    batches = make_batches(24, 4, 60)
    kept = {"reference": ReferenceOptions(cache=True)}
    live = fit(make_module(), batches, max_epochs=2)
    first = make_module(**kept)
    same_run(fit(first, batches, max_epochs=2), live)
    cache = first._reference.cache
    assert (cache.hits, cache.misses) == (48, 48)
    again = make_module(**kept)
    same_run(fit(again, make_batches(24, 4), max_epochs=2), live)
    assert (again._reference.cache.hits, again._reference.cache.misses) == (96, 0)
    assert len(list((tmp_path / "reference_logprobs").iterdir())) == 1


def test_kept_log_probabilities_of_other_rows_or_models_are_refused(
    make_module, make_batches, make_pairs, fit, tiny_llama
):
    kept = {"reference": ReferenceOptions(cache=True)}
    fit(make_module(**kept), make_batches(8, 4))
    with pytest.raises(ValueError, match="holds log-probabilities of another reference model"):
        fit(make_module(backbone={"name_or_path": str(tiny_llama(seed=1))}, **kept), make_batches(8, 4))
    changed = make_batches(8, 4)
    forest = changed[1].micro_batches[0].forest
    forest.tokens[0] += 1
    with pytest.raises(ValueError, match=r"train:5: its tokens are not those"):
        fit(make_module(**kept), changed)


def test_kept_log_probabilities_of_evaluations_are_written(
    make_module, make_batches, make_trainer, make_loader, tmp_path
):
    module = make_module(reference=ReferenceOptions(cache=True))
    make_trainer(logger=False).validate(module, make_loader(make_batches(8, 4)), verbose=False)
    assert len(list((tmp_path / "reference_logprobs").glob("part-*.safetensors"))) == 1


def test_a_loss_that_is_not_finite_stops_the_run(make_module, make_batches, fit, trained_weights):
    def poisoned(chosen_logratios, margins):
        return torch.where(margins == 1.0, chosen_logratios / 0.0, chosen_logratios)

    module = make_module(losses=[LossTerm(poisoned)])
    module.configure_model()
    before = trained_weights(module)
    with pytest.raises(FloatingPointError, match="not finite at step 0 in train:3, train:6; nothing was updated"):
        fit(module, make_batches(6, 6))
    assert all(torch.equal(weight, before[name]) for name, weight in trained_weights(module).items())


def test_a_weight_that_is_not_finite_stops_the_run(make_module, make_batches, fit):
    module = make_module()
    module.configure_model()
    with torch.no_grad():
        module.model.base.model.norm.weight[0] = math.inf
    with pytest.raises((FloatingPointError, ValueError), match=r"not finite|cannot reproduce"):
        fit(module, make_batches(4, 4))


@pytest.mark.parametrize("precision", ["32-true", "16-true"])
def test_a_gradient_that_is_not_finite_stops_the_run(make_module, make_batches, fit, trained_weights, precision):
    module = make_module()
    module.configure_model()
    parameter = next(parameter for parameter in module.parameters() if parameter.requires_grad)
    parameter.register_hook(torch.log)  # of gradients below zero
    before = trained_weights(module)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 0; nothing was updated"):
        fit(module, make_batches(4, 4), precision=precision)
    assert all(torch.equal(weight, before[name].to(weight.dtype)) for name, weight in trained_weights(module).items())


def test_the_gradient_norm_is_watched_and_clipped(make_module, make_batches, fit, trained_weights):
    trainers = [fit(make_module(), make_batches(8, 4), gradient_clip_val=value) for value in (None, 1e-4, 1e9)]
    norms = [trainer.logger.column("train/grad_norm")[0] for trainer in trainers]
    assert norms[0] == norms[1] == norms[2] > 1e-3
    ends = [trained_weights(trainer.lightning_module) for trainer in trainers]
    assert all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_half_precision_follows_the_curve(make_module, make_batches, fit, precision):
    full = fit(make_module(), make_batches(16, 4)).logger.column("train/loss")
    half = fit(make_module(), make_batches(16, 4), precision=precision).logger.column("train/loss")
    assert relative(half, full) < 0.03
    assert half[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"ld_alpha": 0.3},
        {"use_weighting": True},
        {"divergence": losses.forward_kl_scores},
        {"divergence": losses.alpha_scores, "divergence_alpha": 0.3},
        {"beta": 0.5},
        {"losses": [LossTerm(losses.simpo_loss)]},
    ],
    ids="-".join,
)
def test_every_setting_changes_the_run_and_no_cut_does(make_module, make_batches, fit, options):
    plain = fit(make_module(), make_batches(16, 8)).logger.column("train/grad_norm")
    changed = fit(make_module(**options), make_batches(16, 8))
    assert relative(changed.logger.column("train/grad_norm"), plain) > 1e-3
    same_run(fit(make_module(**options), make_batches(16, 8, 40)), changed)


def test_the_alpha_of_a_divergence_is_passed_on(make_module, make_batches, fit):
    curves = [
        fit(make_module(divergence=losses.alpha_scores, divergence_alpha=alpha), make_batches(8, 4)).logger.column(
            "train/loss"
        )
        for alpha in (0.3, 0.6)
    ]
    assert curves[0] != curves[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"losses": [LossTerm(losses.nca_pair_loss)], "divergence": losses.js_scores},
            "nca_pair is defined for the rev",
        ),
        ({"losses": [LossTerm(losses.aot_loss)], "use_weighting": True}, "aot compares pairs by rank"),
        ({"ld_alpha": 2.0}, r"ld_alpha is 2\.0"),
        (
            {"losses": [LossTerm(losses.simpo_loss)], "reference": ReferenceOptions(sync_steps=1)},
            "none of the losses reads one",
        ),
    ],
)
def test_settings_that_contradict_each_other(make_module, options, message):
    with pytest.raises(ValueError, match=message):
        make_module(**options)


def test_no_reference_is_made_where_no_loss_reads_one(make_module, make_batches, fit):
    module = make_module(losses=[LossTerm(losses.simpo_loss)], lora={"enabled": False}, lr=0.01)
    trainer = fit(module, make_batches(8, 4))
    assert module.model.reference_model is None
    assert trainer.logger.column("train/loss")[1] < trainer.logger.column("train/loss")[0]


def test_predictions(make_module, make_batches, make_trainer, make_loader, make_pairs, fit):
    module = make_module(beta=0.3)
    fit(module, make_batches(8, 4))
    batches = make_batches(5, 3, 30)
    predicted = make_trainer(logger=False).predict(module, make_loader(batches))
    rows = {row["row"]: row for batch in predicted for row in batch}
    assert sorted(rows) == [f"train:{number}" for number in range(1, 6)]
    for pair in make_pairs(5):
        row = rows[pair.row]
        assert (row["chosen_length"], row["rejected_length"]) == (len(pair.chosen), len(pair.rejected))
        assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-6)
    module.eval()
    with torch.no_grad():
        pairs = batches[1].micro_batches[0]
        read = module(pairs)
    for number, name in enumerate(pairs.rows):
        assert rows[name]["chosen_reward"] == pytest.approx(0.3 * float(read.chosen_logratios[number]), abs=1e-6)
        assert rows[name]["rejected_logprob"] == pytest.approx(float(read.rejected_logprobs[number]), rel=1e-6)
    assert any(row["margin"] for row in rows.values())


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_is_over_pairs_not_over_batches(make_module, make_batches, make_trainer, make_loader, fit, stage):
    module = make_module()
    fit(module, make_batches(8, 4))
    before = {name: value.clone() for name, value in module.state_dict().items() if "model" in name}
    found = [
        getattr(make_trainer(logger=False), stage)(module, make_loader(batches), verbose=False)[0]
        for batches in (make_batches(10, 10), make_batches(10, 4), make_batches(10, 3, 30))
    ]
    prefix = {"validate": "val", "test": "test"}[stage]
    assert {f"{prefix}/loss", f"{prefix}/rewards/accuracy", f"{prefix}/entropy"} <= set(found[0])
    for metrics in found:
        assert 0 < metrics.pop(f"{prefix}/data/fill") <= 1  # the one number that is about the cut
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items() if name in before)


def test_what_is_logged_in_training(make_module, make_batches, fit):
    batch = make_batches(4, 4)[0]._replace(notes={"dropped/empty_response": 1, "truncated/prompt": 2})
    module = make_module(losses=[LossTerm(), LossTerm(), LossTerm(losses.sft_loss, 0.5)])
    row = fit(module, [batch]).logger.rows[0]
    assert row["step"] == 0
    assert row["train/loss"] == pytest.approx(
        row["train/loss/sigmoid_1"] + row["train/loss/sigmoid_2"] + 0.5 * row["train/loss/sft"], rel=1e-6
    )
    assert row["train/data/dropped"] == pytest.approx(1 / 5)
    assert row["train/data/truncated"] == pytest.approx(2 / 5)
    assert row["train/rewards/ties"] == 1.0
    assert row["train/tokens_per_second"] > 0
    assert row["train/lr"] == 0.5
    assert {"train/logprobs/chosen", "train/length/rejected", "train/entropy", "train/grad_norm"} <= set(row)


def test_metrics_are_over_everything_since_the_last_time(make_module, make_batches, fit):
    often = fit(make_module(), make_batches(16, 4)).logger
    seldom = fit(make_module(), make_batches(16, 4), log_every_n_steps=2).logger
    curve = often.column("train/loss")
    assert seldom.column("train/loss") == pytest.approx(
        [(curve[0] + curve[1]) / 2, (curve[2] + curve[3]) / 2], rel=1e-5
    )


def test_a_batch_without_rows(make_module, make_batches, fit):
    empty = PreferenceBatch((), {"dropped/empty_response": 4})
    batches = make_batches(8, 4)
    plain = fit(make_module(), batches)
    holed = fit(make_module(), [batches[0], empty, batches[1]])
    ours, wanted = holed.logger.column("train/loss"), plain.logger.column("train/loss")
    assert (holed.global_step, ours[0], ours[-1]) == (3, wanted[0], pytest.approx(wanted[1], rel=1e-6))
    assert holed.logger.column("train/data/dropped") == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", ["peft", "backbone", "plain"])
def test_a_model_of_your_own(make_module, make_batches, fit, tiny_llama, tmp_path, kind):
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(tiny_llama())
    if kind == "peft":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    if kind == "backbone":
        made = make_module()
        made.configure_model()
        model = made.model
    module = DPOModule(model, optimizer=partial(torch.optim.SGD, lr=0.5))
    saver = ModelCheckpoint(tmp_path, filename="last")
    trainer = fit(module, make_batches(8, 4), callbacks=[saver], enable_checkpointing=True)
    assert trainer.logger.column("train/loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert module.backbone is model
    names = set(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    kinds = ("sums", "num_summed", "_extra_state")
    held = {"model." + name for name in module.model.checkpointed_names}
    assert names == held | {f"{stage}_means.{kind}" for stage in ("train", "eval") for kind in kinds}


def test_a_checkpoint_holds_what_was_trained(make_module, make_batches, fit, tmp_path, tiny_llama):
    saver = ModelCheckpoint(tmp_path, filename="last")
    module = make_module(optimizer=torch.optim.AdamW, lr=1e-3)
    fit(module, make_batches(8, 4), callbacks=[saver], enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    held = [name for name in checkpoint["state_dict"] if name.startswith("model.")]
    assert sorted(held) == sorted(name for name, p in module.named_parameters() if p.requires_grad)
    base = (tiny_llama() / "model.safetensors").stat().st_size
    assert (tmp_path / "last.ckpt").stat().st_size < base / 2
    other = make_module(seed=1)
    other.configure_model()
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"], strict=False)
    ours = dict(other.named_parameters())
    assert all(torch.equal(parameter, ours[name]) for name, parameter in module.named_parameters())


def test_checkpoints_of_other_models_are_refused(make_module, make_batches, fit, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="last")
    fit(make_module(), make_batches(8, 4), callbacks=[saver], enable_checkpointing=True)
    for options, message in (
        ({"lora": {"r": 8}}, r"of another model or adapter: .*lora_A.policy.weight is \(4, \d+\) in it and \(8, "),
        ({"lora": {"modules_to_save": ["lm_head"]}}, r"it lacks model\..*lm_head"),
        ({"reference": ReferenceOptions(sync_steps=1)}, r"it lacks model\..*\.reference\."),
    ):
        with pytest.raises(ValueError, match=message):
            fit(make_module(**options), make_batches(8, 4), ckpt_path=tmp_path / "last.ckpt")


def test_the_clock_stands_still_while_it_validates(make_module, make_batches, fit, monkeypatch):
    calls = []

    class Recorded(Throughput):
        def pause(self):
            calls.append("pause")

        def go_on(self):
            calls.append("go on")

        def add(self, num_tokens):
            calls.append("train")

    monkeypatch.setattr("lit_rlhf.algorithms.dpo.Throughput", Recorded)
    fit(make_module(), make_batches(4, 4), max_epochs=2, validation=make_batches(4, 4))
    assert calls == ["pause", "go on", *["train", "pause", "go on"] * 2]  # the first is the check before training
