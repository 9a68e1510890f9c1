"""A backbone around a model of your own: used as it is, with the reference that it begins with."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lit_rlhf.models.building import build_backbone, build_policy, wrap_model
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


@pytest.mark.parametrize("enabled", [False, True])
def test_a_reward_model_has_no_lm_head_and_an_adapter_of_its_own_name(tiny_llama, ragged, enabled):
    config = BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=enabled, r=4))
    policy, reward = (build_backbone(config, reference="none", role=role) for role in ("policy", "reward"))
    assert (policy.has_lm_head, reward.has_lm_head) == (True, False)
    assert (policy.policy_adapter, reward.policy_adapter) == (("policy", "reward") if enabled else (None, None))
    assert {name for name in policy.state_dict() if "lm_head" in name} == {
        name
        for name in policy.state_dict()
        if name not in {n.replace(".reward.", ".policy.") for n in reward.state_dict()}
    }
    trained = {name for name, parameter in reward.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in reward.named_parameters() if ".reward." in name or not enabled}
    torch.testing.assert_close(reward.hidden_states(ragged), policy.hidden_states(ragged))


def test_a_reward_model_that_changes_its_base_is_saved_as_a_change(tiny_llama, stir, ragged, tmp_path):
    options = LoraOptions(r=4, init="pissa")
    reward = stir(build_backbone(BackboneConfig(str(tiny_llama()), lora=options), reference="none", role="reward"))
    wanted = reward.eval().hidden_states(ragged)
    reward.save(tmp_path)
    again = build_backbone(BackboneConfig(str(tiny_llama()), str(tmp_path)), reference="none", role="reward").eval()
    torch.testing.assert_close(again.hidden_states(ragged), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("enabled", [False, True])
def test_a_policy_has_a_reference_and_no_dropout(tiny_llama, stir, ragged, enabled):
    config = BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=enabled, r=4, dropout=0.2))
    if enabled:
        with pytest.warns(UserWarning, match="the policy had dropout, which is off now"):
            policy = build_policy(config)
    else:
        policy = build_policy(config)
    before = policy.token_logprobs(ragged).logprobs.detach()
    stir(policy.train())
    assert torch.equal(*(policy.token_logprobs(ragged).logprobs for _ in range(2))), "nothing is random"
    with policy.role("reference"):
        torch.testing.assert_close(policy.token_logprobs(ragged).logprobs, before)


def test_a_policy_without_dropout_is_not_spoken_of(tiny_llama, recwarn):
    build_policy(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4)))
    assert not [warning for warning in recwarn if "dropout" in str(warning.message)]


@pytest.mark.parametrize("kind", ["backbone", "model", "peft"])
def test_a_policy_of_your_own(tiny_llama, stir, ragged, kind):
    mine = LlamaForCausalLM.from_pretrained(tiny_llama(), attention_dropout=0.3)
    if kind == "peft":
        mine = get_peft_model(mine, LoraConfig(r=4, lora_dropout=0.3, target_modules="all-linear"))
    policy = build_policy(wrap_model(mine) if kind == "backbone" else mine)
    assert policy.model is mine
    stir(policy).train()
    assert torch.equal(*(policy.token_logprobs(ragged).logprobs for _ in range(2)))
    with policy.role("reference"):
        expected = build_policy(LlamaForCausalLM.from_pretrained(tiny_llama())).token_logprobs(ragged).logprobs
        torch.testing.assert_close(policy.token_logprobs(ragged).logprobs, expected)


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_reference_model_of_its_own(tiny_llama, stir, ragged, tmp_path, with_adapter, enabled):
    """Another base, with an adapter on it or not; the policy has no second reference beside it."""
    other = build_backbone(BackboneConfig(str(tiny_llama(seed=1)), lora=LoraOptions(r=4)), reference="none")
    if with_adapter:
        stir(other).save(tmp_path)
    expected = other.eval().token_logprobs(ragged).logprobs.detach()
    reference = BackboneConfig(str(tiny_llama(seed=1)), str(tmp_path) if with_adapter else None)
    config = BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=enabled, r=4))
    policy = build_policy(config, reference)
    assert not policy.has_reference_adapter
    assert not any(parameter.requires_grad for parameter in policy.reference_model.parameters())
    with policy.role("reference"):
        torch.testing.assert_close(policy.token_logprobs(ragged).logprobs, expected, rtol=1e-4, atol=2e-5)
    assert not torch.allclose(policy.token_logprobs(ragged).logprobs, expected, atol=1e-2)
    kept = [name for name in policy.checkpointed_names if "reference_model" in name]
    assert not kept or not enabled
