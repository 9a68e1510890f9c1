"""A backbone around a model of your own: used as it is, with the reference that it begins with."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lit_rlhf.models.building import build_backbone, wrap_model
from lit_rlhf.models.loading import quantization_config
from lit_rlhf.models.options import BackboneConfig, LoraOptions


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("reference", ["none", "fixed", "moving"])
def test_a_peft_model_of_your_own(tiny_llama, stir, ragged, begun, reference):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    mine = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_llama()), config)
    if begun:
        stir(mine)
    backbone = wrap_model(mine, reference=reference)
    assert backbone.model is mine
    assert ("reference" in mine.peft_config) == (reference == "moving" or (reference == "fixed" and begun))
    before = backbone.token_logprobs(ragged).logprobs.detach()
    stir(mine, seed=1)
    if reference != "none":
        with backbone.role("reference"):
            torch.testing.assert_close(backbone.token_logprobs(ragged).logprobs, before)
    assert {name.split(".")[-2] for name in backbone.checkpointed_names} <= {"default", "reference"}


def test_prompts_that_are_learned_are_refused(tiny_llama):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    mine = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_llama()), config)
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        wrap_model(mine)


def test_a_model_of_your_own(tiny_llama, stir, ragged):
    backbone = stir(wrap_model(LlamaForCausalLM.from_pretrained(tiny_llama())))
    plain = LlamaForCausalLM.from_pretrained(tiny_llama())
    assert not any(parameter.requires_grad for parameter in backbone.reference_model.parameters())
    with backbone.role("reference"):
        ours = backbone.token_logprobs(ragged).logprobs
    torch.testing.assert_close(ours, wrap_model(plain, reference="none").token_logprobs(ragged).logprobs)


def test_four_bits_stay_as_they_are(tiny_llama):
    four_bits = quantization_config("nf4", torch.float32)
    mine = AutoModelForCausalLM.from_pretrained(tiny_llama(), quantization_config=four_bits, device_map={"": "cpu"})
    wrap_model(get_peft_model(mine, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")))
    layers = [module for module in mine.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("reference", ["none", "fixed", "moving"])
@pytest.mark.parametrize("enabled", [False, True])
def test_roles_that_are_needed_are_made(tiny_llama, reference, enabled):
    config = BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=enabled, r=4))
    backbone = build_backbone(config, reference=reference)
    assert (backbone.reference_model is not None) == (not enabled and reference != "none")
    assert backbone.has_reference_adapter == (enabled and reference == "moving")
