"""SFTModule in a Trainer: the loss is that of padded rows, one step is one step however it is cut."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from datamodules.packing import pack_sequences
from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.metrics.throughput import Throughput
from lit_rlhf.types import InstructionBatch

CUTS = ((16, 60, 1), (16, 1, 1), (4, 10**6, 4), (4, 40, 4))
"""Texts of a batch, token budget, accumulated batches: all of them are steps of 16 texts."""


@pytest.fixture
def make_sft(make_module):
    """SFTModules on the tiny Llama, seeded."""
    return partial(make_module, kind=SFTModule)


def padded(texts):
    """Rows padded on the right: token ids, labels (-100 where nothing is learnt) and mask, (B, T) each."""
    width = max(len(text.tokens) for text in texts)
    columns = [
        [[*text.tokens] + [0] * (width - len(text.tokens)) for text in texts],
        [
            [token if flag else -100 for token, flag in zip(text.tokens, text.scored, strict=True)]
            + [-100] * (width - len(text.tokens))
            for text in texts
        ],
        [[1] * len(text.tokens) + [0] * (width - len(text.tokens)) for text in texts],
    ]
    return map(torch.tensor, columns)


def by_hand(module, texts, average, label_smoothing):
    """The loss of a step from whole logits of padded rows."""
    tokens, labels, mask = padded(texts)
    logits = module.model.base(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    losses = cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], label_smoothing=label_smoothing, ignore_index=-100, reduction="none"
    )
    counts = (labels[:, 1:] != -100).sum(1)
    return losses.sum() / counts.sum() if average == "tokens" else (losses.sum(1) / counts).mean()


@pytest.mark.parametrize("average", ["tokens", "sequences"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("lora", [{}, {"enabled": False}], ids=["adapter", "whole"])
def test_the_loss_and_the_step_of_padded_rows(
    make_sft, make_texts, make_text_batches, fit, average, label_smoothing, lora
):
    module = make_sft(average=average, label_smoothing=label_smoothing, lora=lora)
    module.configure_model()
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    expected = by_hand(module, make_texts(8), average, label_smoothing)
    gradients = torch.autograd.grad(expected, list(trained.values()))
    wanted = [p.detach() - 0.5 * gradient for p, gradient in zip(trained.values(), gradients, strict=True)]
    trainer = fit(module, make_text_batches(8, 8, 60))
    assert trainer.logger.column("train/loss") == pytest.approx([float(expected.detach())], rel=1e-6)
    torch.testing.assert_close([parameter.detach() for parameter in trained.values()], wanted, rtol=1e-4, atol=1e-6)


def test_the_loss_of_transformers(make_sft, make_texts, make_text_batches, fit):
    module = make_sft()
    module.configure_model()
    tokens, labels, mask = padded(make_texts(8))
    with torch.no_grad():
        wanted = float(module.model.base(input_ids=tokens, attention_mask=mask, labels=labels).loss)
    assert fit(module, make_text_batches(8, 8)).logger.column("train/loss")[0] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"average": "sequences", "label_smoothing": 0.1}], ids=["plain", "other"])
def test_one_step_is_one_step_however_it_is_cut(make_sft, make_text_batches, fit, assert_same_run, options):
    whole = fit(make_sft(**options), make_text_batches(48, 16))
    assert len(set(whole.logger.column("train/loss"))) == 3
    for size, budget, accumulated in CUTS:
        cut = fit(make_sft(**options), make_text_batches(48, size, budget), accumulate_grad_batches=accumulated)
        assert cut.global_step == 3
        assert_same_run(cut, whole)
    eager = {"backbone": {"attention": "eager"}}
    assert_same_run(fit(make_sft(**eager, **options), make_text_batches(48, 16)), whole)


@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_the_last_window_may_be_shorter(make_sft, make_text_batches, fit, assert_same_run, average):
    whole = fit(make_sft(average=average), make_text_batches(20, 8), max_epochs=2)
    accumulated = fit(make_sft(average=average), make_text_batches(20, 4), accumulate_grad_batches=2, max_epochs=2)
    assert whole.global_step == accumulated.global_step == 6
    assert_same_run(accumulated, whole)


@pytest.mark.parametrize("options", [{"average": "sequences"}, {"label_smoothing": 0.9}], ids="-".join)
def test_every_setting_changes_the_run_but_not_what_is_compared(make_sft, make_text_batches, fit, options):
    plain = fit(make_sft(), make_text_batches(8, 8)).logger.rows[0]
    changed = fit(make_sft(**options), make_text_batches(8, 8)).logger.rows[0]
    assert changed["train/loss"] != pytest.approx(plain["train/loss"], rel=1e-4)
    assert changed["train/grad_norm"] != pytest.approx(plain["train/grad_norm"], rel=1e-4)
    assert plain["train/nll"] == plain["train/loss"]
    assert changed["train/nll"] == pytest.approx(plain["train/nll"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "words"}, "average is 'words'; it is one of tokens, sequences"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0; it lies from 0 to below 1"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0\.1"),
    ],
)
def test_settings_that_cannot_be(make_sft, options, message):
    with pytest.raises(ValueError, match=message):
        make_sft(**options)


@pytest.mark.parametrize("options", [{}, {"backbone": {"quantization": "nf4"}}, {"lora": {"enabled": False}}])
def test_the_base_stands_still_and_all_else_moves(make_sft, make_text_batches, fit, options):
    module = make_sft(**options)
    module.configure_model()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    fit(module, make_text_batches(12, 4))
    assert module.model.reference_model is None
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_it_learns_a_handful_of_texts(make_sft, make_text_batches, fit):
    module = make_sft(optimizer=torch.optim.AdamW, lr=5e-3, lora={"enabled": False})
    often = {"max_epochs": 60, "check_val_every_n_epoch": 60}
    trainer = fit(module, make_text_batches(6, 6), validation=make_text_batches(6, 3), **often)
    final = trainer.logger.rows[-1]
    assert final["val/token_accuracy"] > 0.95
    assert final["val/nll"] < 0.3
    assert final["val/perplexity"] == pytest.approx(math.exp(final["val/nll"]), rel=1e-5)


def test_a_run_goes_on_from_an_adapter(make_sft, make_text_batches, fit, tmp_path):
    first = make_sft()
    trainer = fit(first, make_text_batches(8, 4), max_epochs=3, validation=make_text_batches(8, 4))
    first.model.save(tmp_path / "adapter")
    again = make_sft(backbone={"adapter": str(tmp_path / "adapter")})
    going_on = fit(again, make_text_batches(8, 8))
    assert going_on.logger.column("train/loss")[0] == pytest.approx(trainer.logger.rows[-1]["val/loss"], rel=1e-5)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_is_over_tokens_not_over_batches(make_sft, make_text_batches, make_trainer, make_loader, fit, stage):
    module = make_sft()
    fit(module, make_text_batches(8, 4))
    before = {name: value.clone() for name, value in module.state_dict().items() if "model" in name}
    found = [
        getattr(make_trainer(logger=False), stage)(module, make_loader(batches), verbose=False)[0]
        for batches in (make_text_batches(10, 10), make_text_batches(10, 4), make_text_batches(10, 3, 30))
    ]
    prefix = {"validate": "val", "test": "test"}[stage]
    assert {f"{prefix}/{name}" for name in ("loss", "perplexity", "entropy", "nll/train", "nll/other")} <= set(found[0])
    for metrics in found:
        assert 0 < metrics.pop(f"{prefix}/data/fill") <= 1  # the one number that is about the cut
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items() if name in before)


def test_predictions(make_sft, make_texts, make_text_batches, make_trainer, make_loader, fit):
    module = make_sft()
    fit(module, make_text_batches(8, 4))
    predicted = make_trainer(logger=False).predict(module, make_loader(make_text_batches(5, 3, 30)))
    rows = {row["row"]: row for batch in predicted for row in batch}
    assert sorted(rows) == [f"train:{number}" for number in range(1, 6)]
    for text in make_texts(5):
        row, (tokens, labels, mask) = rows[text.row], padded([text])
        with torch.no_grad():
            logits = module.model.base(input_ids=tokens, attention_mask=mask).logits[0, :-1]
        wanted = -cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        hits = (logits.argmax(-1) == labels[0, 1:]).sum()
        assert (row["length"], row["source"]) == (sum(text.scored), text.source)
        assert row["logprob"] == pytest.approx(float(wanted), rel=1e-5)
        assert row["token_accuracy"] == pytest.approx(float(hits) / row["length"])


def test_what_is_logged_in_training(make_sft, make_text_batches, fit):
    batch = make_text_batches(4, 4)[0]._replace(notes={"dropped/too_long": 1, "truncated/prompt": 2})
    row = fit(make_sft(label_smoothing=0.1), [batch]).logger.rows[0]
    assert row["step"] == 0
    assert row["train/perplexity"] == pytest.approx(math.exp(row["train/nll"]), rel=1e-6)
    assert row["train/data/dropped"] == pytest.approx(1 / 5)
    assert row["train/data/truncated"] == pytest.approx(2 / 5)
    assert row["train/tokens_per_second"] > 0
    assert row["train/lr"] == 0.5
    assert {"train/token_accuracy", "train/entropy", "train/length/trained", "train/grad_norm"} <= set(row)


def test_metrics_are_over_everything_since_the_last_time(make_sft, make_text_batches, fit):
    often = fit(make_sft(average="sequences"), make_text_batches(16, 4)).logger.column("train/loss")
    seldom = fit(make_sft(average="sequences"), make_text_batches(16, 4), log_every_n_steps=2).logger
    halves = [(often[0] + often[1]) / 2, (often[2] + often[3]) / 2]
    assert seldom.column("train/loss") == pytest.approx(halves, rel=1e-5)


def test_a_batch_without_rows(make_sft, make_text_batches, fit):
    empty = InstructionBatch((), {"dropped/too_long": 4})
    batches = make_text_batches(8, 4)
    plain = fit(make_sft(), batches).logger.column("train/loss")
    holed = fit(make_sft(), [batches[0], empty, batches[1]])
    ours = holed.logger.column("train/loss")
    assert (holed.global_step, ours[0], ours[-1]) == (3, plain[0], pytest.approx(plain[1], rel=1e-6))
    assert holed.logger.column("train/data/dropped") == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_a_text_without_trained_tokens_weighs_nothing(make_sft, make_texts, fit, average):
    texts = make_texts(4)
    idle = texts[0]._replace(scored=[False] * len(texts[0].tokens))
    with_idle = fit(make_sft(average=average), [pack_sequences([idle, *texts[1:]], 10**6)])
    without = fit(make_sft(average=average), [pack_sequences(texts[1:], 10**6)])
    for name in ("train/loss", "train/grad_norm"):
        assert with_idle.logger.column(name) == pytest.approx(without.logger.column(name), rel=1e-6)
    returned = []
    keep = LambdaCallback(on_train_batch_end=lambda *ends: returned.append(float(ends[2]["loss"])))
    nothing = fit(make_sft(average=average), [pack_sequences([idle], 10**6)], callbacks=[keep])
    assert nothing.logger.column("train/grad_norm") == returned == [0.0]


@pytest.mark.parametrize("kind", ["peft", "backbone", "plain"])
def test_a_model_of_your_own(make_sft, make_text_batches, fit, tiny_llama, tmp_path, kind):
    model = LlamaForCausalLM.from_pretrained(tiny_llama())
    if kind == "peft":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    if kind == "backbone":
        made = make_sft()
        made.configure_model()
        model = made.model
    module = SFTModule(model, optimizer=partial(torch.optim.SGD, lr=0.5))
    saver = ModelCheckpoint(tmp_path, filename="last")
    curve = fit(module, make_text_batches(8, 4), callbacks=[saver], enable_checkpointing=True).logger
    assert len(set(curve.column("train/loss"))) == 2
    assert module.model.reference_model is None
    names = set(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    kinds = ("sums", "num_summed", "_extra_state")
    held = {"model." + name for name in module.model.checkpointed_names}
    assert names == held | {f"{stage}_means.{kind}" for stage in ("train", "eval") for kind in kinds}


def test_a_checkpoint_holds_what_was_trained_and_fits_no_other_model(make_sft, make_text_batches, fit, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="last")
    module = make_sft(optimizer=torch.optim.AdamW, lr=1e-3)
    fit(module, make_text_batches(8, 4), callbacks=[saver], enable_checkpointing=True)
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert sorted(name for name in held if name.startswith("model.")) == sorted(trained)
    with pytest.raises(ValueError, match=r"lora_A.policy.weight is \(4, \d+\) in it and \(8, "):
        fit(make_sft(lora={"r": 8}), make_text_batches(8, 4), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("lora", [{}, {"enabled": False}], ids=["adapter", "whole"])
def test_a_loss_that_is_not_finite_stops_the_run(make_sft, make_texts, fit, trained_weights, lora):
    module = make_sft(lora=lora)
    module.configure_model()
    module.model.prepare()
    *texts, last = make_texts(6)
    batches = [pack_sequences([*texts, last._replace(scored=[False] * len(last.scored))], 10**6)]
    (part,) = batches[0].micro_batches
    part.forest.tokens[part.forest.starts[2]] = 319
    before = trained_weights(module)
    with torch.no_grad():  # the embedding of a token that no other text holds
        module.model.base.get_input_embeddings().weight[319] = math.nan
    row = part.rows[2]
    with pytest.raises(FloatingPointError, match=rf"the loss is not finite at step 0 in {row}; nothing was updated"):
        fit(module, batches)
    weights = trained_weights(module)
    assert all(torch.equal(weight[:319], before[name][:319]) for name, weight in weights.items())


def test_a_gradient_that_is_not_finite_stops_the_run(make_sft, make_text_batches, fit, trained_weights):
    module = make_sft()
    module.configure_model()
    next(parameter for parameter in module.parameters() if parameter.requires_grad).register_hook(torch.log)
    before = trained_weights(module)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 0; nothing was updated"):
        fit(module, make_text_batches(4, 4))
    assert all(torch.equal(weight, before[name]) for name, weight in trained_weights(module).items())


def test_the_gradient_is_clipped(make_sft, make_text_batches, fit, trained_weights):
    trainers = [fit(make_sft(), make_text_batches(8, 4), gradient_clip_val=value) for value in (None, 1e-4, 1e9)]
    norms = [trainer.logger.column("train/grad_norm")[0] for trainer in trainers]
    assert norms[0] == norms[1] == norms[2] > 1e-3
    ends = [trained_weights(trainer.lightning_module) for trainer in trainers]
    assert all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_half_precision_follows_the_curve(make_sft, make_text_batches, fit, precision):
    full = fit(make_sft(), make_text_batches(16, 4)).logger.column("train/loss")
    half = fit(make_sft(), make_text_batches(16, 4), precision=precision).logger.column("train/loss")
    assert half == pytest.approx(full, rel=1e-2)


def test_the_clock_stands_still_while_it_validates(make_sft, make_text_batches, fit, monkeypatch):
    calls = []

    class Recorded(Throughput):
        def pause(self):
            calls.append("pause")

        def go_on(self):
            calls.append("go on")

        def add(self, num_tokens):
            calls.append("train")

    monkeypatch.setattr("lit_rlhf.algorithms.sft.Throughput", Recorded)
    fit(make_sft(), make_text_batches(4, 4), max_epochs=2, validation=make_text_batches(4, 4))
    assert calls == ["pause", "go on", *["train", "pause", "go on"] * 2]  # the first is the check before training
