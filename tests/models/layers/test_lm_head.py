"""The head's weight under adapters, and the transforms that models apply to their logits."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, LlamaForCausalLM

from lit_rlhf.models.adapters import active_adapter
from lit_rlhf.models.layers.linear_logprobs import LogitTransform
from lit_rlhf.models.layers.lm_head import head_parameters, logit_transform


@pytest.fixture
def model(tiny_llama):
    return LlamaForCausalLM.from_pretrained(tiny_llama())


def adapted(model, **options):
    peft = get_peft_model(model, LoraConfig(r=2, **options))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peft


def check(peft, model):
    """The head's own forward is the linear map that we found."""
    hidden = torch.randn(3, model.config.hidden_size)
    weight, bias = head_parameters(model)
    torch.testing.assert_close(nn.functional.linear(hidden, weight, bias), model.lm_head(hidden))
    return weight


def test_plain(model):
    assert head_parameters(model)[0] is model.lm_head.weight


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}])
def test_a_head_that_is_trained(model, options):
    plain = model.lm_head.weight.clone()
    peft = adapted(model, **options)
    weight = check(peft, model)
    assert weight.requires_grad
    assert not torch.equal(weight, plain)
    with active_adapter(peft, None):
        assert torch.equal(head_parameters(model)[0], plain)


def test_a_magnitude_on_the_head_is_refused(model):
    get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], use_dora=True))
    with pytest.raises(ValueError, match="DoRA"):
        head_parameters(model)


def test_a_head_in_4_bits(model):
    packed = bitsandbytes.nn.Linear4bit(64, 32, bias=True, quant_type="nf4", compute_dtype=torch.float32)
    model.lm_head = packed.to("cpu")
    hidden = torch.randn(3, 64)
    weight, bias = head_parameters(model)
    torch.testing.assert_close(nn.functional.linear(hidden, weight, bias), packed(hidden), rtol=1e-4, atol=1e-5)


def test_a_head_of_another_kind_is_refused(model):
    model.lm_head = nn.Sequential(nn.Linear(64, 4))
    with pytest.raises(ValueError, match="the output head is a Sequential"):
        head_parameters(model)


@pytest.mark.parametrize(
    ("config", "change", "expected"),
    [
        (LlamaConfig(), lambda raw: raw, LogitTransform()),
        (CohereConfig(logit_scale=0.25), lambda raw: raw * 0.25, LogitTransform(0.25)),
        (GraniteConfig(logits_scaling=4.0), lambda raw: raw / 4.0, LogitTransform(0.25)),
        (
            Gemma2Config(final_logit_softcapping=3.0),
            lambda raw: 3.0 * torch.tanh(raw / 3.0),
            LogitTransform(softcap=3.0),
        ),
    ],
)
def test_transforms_are_found(config, change, expected):
    raw = torch.randn(4, 9)
    assert logit_transform(config, raw, change(raw)) == expected


def test_an_unknown_transform_is_refused():
    raw = torch.randn(4, 9)
    with pytest.raises(ValueError, match="cannot reproduce the logits of a llama model"):
        logit_transform(LlamaConfig(), raw, raw * 1.01)
