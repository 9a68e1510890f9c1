"""LoRA on experts: PEFT's numbers and gradients without PEFT's memory, on experts in full precision and in 4 bits."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper

from lit_rlhf.models.moe.expert_lora import ExpertLora, keep_low_rank
from lit_rlhf.models.moe.four_bit import quantise_experts
from tests.tiny_moe import FAMILIES, make_mixture

TOKENS = torch.arange(3, 27)[None]
BOTH = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]


def adapted(family: str = "mixtral", parameters=BOTH, *, is_packed: bool = False):
    model = make_mixture(family)
    model.requires_grad_(False)
    if is_packed:
        quantise_experts(model)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj"], target_parameters=parameters, lora_dropout=0.0)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return peft


def outcome(model):
    logits = model(input_ids=TOKENS, use_cache=False).logits
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return logits.detach(), dict(zip(trained, torch.autograd.grad((logits**2).sum(), [*trained.values()]), strict=True))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama4"])
@pytest.mark.parametrize("parameters", [BOTH, BOTH[:1], BOTH[1:]], ids=["both", "down", "gate_up"])
def test_numbers_and_gradients_are_those_of_peft(family, parameters):
    model = adapted(family, parameters)
    ours = keep_low_rank(copy.deepcopy(model))
    assert any(isinstance(module, ExpertLora) for module in ours.modules())
    (logits, gradients), (own_logits, own) = outcome(model), outcome(ours)
    torch.testing.assert_close(own_logits, logits, atol=1e-5, rtol=1e-5)
    assert any("experts" in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-4, rtol=1e-4, msg=name)
    with ours.disable_adapter(), model.disable_adapter():
        off = ours(input_ids=TOKENS).logits
        torch.testing.assert_close(off, model(input_ids=TOKENS).logits)
    assert (off - logits).abs().max() > 1e-2


def test_on_experts_in_four_bits_as_on_their_numbers():
    ours = keep_low_rank(adapted(is_packed=True))
    dense = copy.deepcopy(ours)
    for layer in dense.base_model.model.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            experts = layer.mlp.experts.get_base_layer()
            setattr(experts, name, torch.nn.Parameter(getattr(experts, name).dense(), requires_grad=False))
    (logits, gradients), (dense_logits, dense_gradients) = outcome(ours), outcome(dense)
    torch.testing.assert_close(logits, dense_logits, atol=1e-5, rtol=1e-5)
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_nothing_as_large_as_a_stack_is_kept():
    model = adapted()
    size = model.base_model.model.model.layers[0].mlp.experts.get_base_layer().gate_up_proj.numel()

    def kept(one) -> int:
        found = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
            one(input_ids=TOKENS, use_cache=False)
        own = {p.data_ptr() for p in one.parameters()}
        return sum(x.numel() >= size and x.untyped_storage().data_ptr() not in own for x in found)

    assert kept(copy.deepcopy(model)) > 0
    assert kept(keep_low_rank(model)) == 0


def test_what_merges_or_mixes_is_left_to_peft():
    model = keep_low_rank(adapted())
    logits = model(input_ids=TOKENS).logits
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(merged(input_ids=TOKENS).logits, logits, atol=1e-4, rtol=1e-4)
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(model(input_ids=TOKENS).logits, logits, atol=1e-4, rtol=1e-4)


def test_experts_of_another_build_stay_as_they_are():
    model = make_mixture("llama4")
    names = ["feed_forward.experts.down_proj"]
    peft = keep_low_rank(get_peft_model(model, LoraConfig(target_modules=["q_proj"], target_parameters=names)))
    assert {type(m) for m in peft.modules() if isinstance(m, ParamWrapper)} == {ParamWrapper}
