"""Mixtures of experts as backbones: exact in every layout, in 4 bits, with adapters that plain PEFT loads."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_rlhf.models.building import build_backbone, wrap_model
from lit_rlhf.models.moe.expert_lora import ExpertLora
from lit_rlhf.models.moe.four_bit import expert_parameters, has_four_bit_experts
from lit_rlhf.models.moe.routers import find_routers
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from tests.tiny_moe import FAMILIES, make_mixture

LORA = LoraOptions(r=4, alpha=8, target_experts=True)
LAYOUTS = dict.fromkeys(FAMILIES, "forest") | {"llama4": "padded"}


@pytest.fixture(scope="session")
def mixture(tmp_path_factory):
    """Folders of random mixtures."""
    folders = {}

    def make(family="mixtral"):
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            make_mixture(family, vocab_size=320).save_pretrained(folders[family])
        return str(folders[family])

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_gives_the_logprobs_of_its_own_padded_forward(family, ragged, row_logprobs):
    plain = make_mixture(family, vocab_size=320)
    backbone = wrap_model(copy.deepcopy(plain), reference="none")
    with torch.no_grad():
        expected, ours = row_logprobs(plain, ragged), backbone.token_logprobs(ragged).logprobs
    assert backbone.layout == LAYOUTS[family]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "llama4"])
def test_checkpointed_layers_and_padded_rows_give_the_same_gradients(mixture, stir, ragged, family, quantization):
    found = []
    for options in ({}, {"gradient_checkpointing": True}, {"attention": "sdpa"}):
        config = BackboneConfig(mixture(family), quantization=quantization, lora=LORA, train_router=True, **options)
        torch.manual_seed(0)
        backbone = stir(build_backbone(config), scale=0.1)
        assert has_four_bit_experts(backbone) == (quantization == "nf4")
        logprobs = backbone.token_logprobs(ragged).logprobs
        trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(logprobs.sum(), [*trained.values()], allow_unused=True)
        found.append((logprobs.detach(), gradients))
    assert sum(g is not None and bool(g.any()) for g in found[0][1]) > len(found[0][1]) / 2
    for logprobs, gradients in found[1:]:
        torch.testing.assert_close(logprobs, found[0][0], rtol=1e-4, atol=1e-4)
        for own, other in zip(gradients, found[0][1], strict=True):
            assert (own is None) == (other is None)
            if own is not None:
                torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_loaded_into_four_bits_and_routers_are_not(mixture, family):
    model = build_backbone(BackboneConfig(mixture(family), quantization="nf4", lora=LoraOptions(r=2))).base
    plain = AutoModelForCausalLM.from_pretrained(mixture(family))
    packed = {name: getattr(module, name) for module, name in expert_parameters(model)}
    dense = {name: getattr(module, name) for module, name in expert_parameters(plain)}
    assert packed.keys() == dense.keys()
    for name, weight in packed.items():
        assert 0 < (weight.dense() - dense[name]).abs().max() < 0.17 * dense[name].abs().max()
    for own, other in zip(find_routers(model), find_routers(plain), strict=True):
        assert torch.equal(own.module.weight, other.module.weight)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "qwen2_moe"])
def test_an_adapter_on_experts_and_router_is_loaded_by_plain_peft(
    mixture, stir, ragged, row_logprobs, tmp_path, family, quantization
):
    config = BackboneConfig(mixture(family), quantization=quantization, lora=LORA, train_router=True)
    backbone = stir(build_backbone(config), scale=0.1)
    backbone.save(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert any("experts" in name for name in names)
    assert any(".gate." in name for name in names)
    plain = AutoModelForCausalLM.from_pretrained(mixture(family))
    if quantization == "nf4":  # plain PEFT adapts full precision: ours in 4 bits is compared on its own numbers
        for (module, name), (packed, _) in zip(expert_parameters(plain), expert_parameters(backbone.base), strict=True):
            getattr(module, name).data = getattr(packed, name).dense()
        for name, module in backbone.base.named_modules():
            if type(module).__name__ == "Linear4bit":
                layer = plain.get_submodule(name.replace(".base_layer", ""))
                state = module.weight.quant_state
                layer.weight.data = dequantize_4bit(module.weight.data, state)
    theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    with torch.no_grad():
        ours = backbone.token_logprobs(ragged).logprobs
        torch.testing.assert_close(ours, row_logprobs(theirs, ragged), rtol=1e-4, atol=1e-4)
        again = build_backbone(BackboneConfig(mixture(family), adapter=str(tmp_path), quantization=quantization))
        assert any(isinstance(module, ExpertLora) for module in again.modules())
        torch.testing.assert_close(again.token_logprobs(ragged).logprobs, ours, rtol=1e-5, atol=1e-5)
        with again.role("reference"):
            torch.testing.assert_close(again.token_logprobs(ragged).logprobs, ours, rtol=1e-5, atol=1e-5)


def test_full_fine_tuning_leaves_routers_as_they_are_unless_asked(mixture):
    for asked in (False, True):
        backbone = build_backbone(
            BackboneConfig(mixture(), lora=LoraOptions(enabled=False), train_router=asked), reference="none"
        )
        frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
        assert all(name.endswith("mlp.gate.weight") for name in frozen)
        assert bool(frozen) != asked


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "llama4"])
def test_a_merged_adapter_on_experts_and_router_is_the_model_with_it(
    mixture, stir, ragged, row_logprobs, tmp_path, family
):
    """Written, the merged model has the names and shapes of its base; read again, the log-probabilities of both."""
    backbone = stir(build_backbone(BackboneConfig(mixture(family), lora=LORA, train_router=True)), scale=0.1)
    with torch.no_grad():
        expected = backbone.token_logprobs(ragged).logprobs
    backbone.model.merge_and_unload().save_pretrained(tmp_path)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (mixture(family), tmp_path))
    assert {name: one.shape for name, one in after.items()} == {name: one.shape for name, one in before.items()}
    with torch.no_grad():
        found = row_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path), ragged)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
