"""Which weights of a mixture get an adapter: never a router or an expert that nobody asked for."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.adapters import new_adapter
from lit_rlhf.models.moe.targets import linear_targets, target_parameters
from lit_rlhf.models.options import LoraOptions
from tests.tiny_moe import FAMILIES, make_mixture


def adapted_names(model) -> set[str]:
    return {
        name.split(".lora_A")[0].split("base_model.model.")[1]
        for name, _ in model.named_parameters()
        if "lora_A" in name
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_what_is_linear_and_no_router(family):
    names = adapted_names(new_adapter(make_mixture(family), LoraOptions(r=2)))
    assert any(name.endswith("self_attn.o_proj") for name in names)
    assert not any(name.endswith((".gate", ".router", ".experts", ".experts.base_layer", "lm_head")) for name in names)
    is_shared = any("shared_expert" in name for name in names)
    assert is_shared == (family in ("qwen2_moe", "llama4"))  # of the others PEFT would adapt all experts instead


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_and_routers_are_adapted_where_they_are_asked_for(family):
    model = make_mixture(family)
    adapted = new_adapter(model, LoraOptions(r=2, target_experts=True), train_router=True)
    names = adapted_names(adapted)
    assert any(name.endswith(".experts") for name in names)
    assert any(name.endswith((".gate", ".router")) for name in names)
    ranks = {tuple(p.shape) for name, p in adapted.named_parameters() if "experts.lora_A" in name}
    experts = model.model.layers[1]
    experts = (experts.feed_forward if family == "llama4" else experts.mlp).experts.get_base_layer()
    assert {rank for rank, _ in ranks} == {2 * experts.num_experts}  # r to each expert, and not twice that
    tokens = torch.arange(3, 15)[None]
    adapted(input_ids=tokens, use_cache=False).logits.sum().backward()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name and "experts" in name:
            assert parameter.grad.abs().max() > 0, name
    assert any(
        p.grad is not None and p.grad.any()
        for name, p in adapted.named_parameters()
        if ".gate.lora_B" in name or ".router.lora_B" in name
    )


def test_of_a_dense_model_nothing_is_changed(tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama())
    assert linear_targets(model, "all-linear") == "all-linear"
    assert linear_targets(make_mixture("mixtral"), ["q_proj"]) == ["q_proj"]
    assert target_parameters(model, LoraOptions()) is None
    with pytest.raises(ValueError, match=r"lora.target_experts is set, and 'llama' has no experts"):
        target_parameters(model, LoraOptions(target_experts=True))
    with pytest.raises(ValueError, match=r"backbone.train_router is set, and 'llama' has no routers"):
        target_parameters(model, LoraOptions(), train_router=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"dropout": 0.1}, "set lora.dropout to 0"), ({"use_dora": True}, "DoRA"), ({"init": "olora"}, "'olora'")],
)
def test_adapters_that_stacked_weights_cannot_have_are_refused(options, words):
    model = make_mixture("mixtral")
    with pytest.raises(ValueError, match=f"lora.target_experts is set.*{words}"):
        target_parameters(model, LoraOptions(target_experts=True, **options))
    with pytest.raises(ValueError, match=f"backbone.train_router is set.*{words}"):
        target_parameters(model, LoraOptions(**options), train_router=True)
