"""SFTModule in a Trainer: the loss is that of padded rows, one step is one step however it is cut."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from lit_rlhf.algorithms.sft import SFTModule

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
