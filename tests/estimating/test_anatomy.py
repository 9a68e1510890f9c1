"""Models without numbers, and their bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, GPT2Config, LlamaConfig, LlavaConfig, MixtralConfig

from lit_rlhf.estimating.anatomy import (
    adapter_tensors,
    anatomy,
    base_bytes,
    cache_bytes,
    nf4_bytes,
    quantised,
    stacked_nf4_bytes,
)
from lit_rlhf.models.adapters import new_adapter
from lit_rlhf.models.loading import load_causal_lm
from lit_rlhf.models.moe.four_bit import FourBitWeight, expert_parameters
from lit_rlhf.models.options import BackboneConfig, LoraOptions

LLAMA_3_8B = LlamaConfig(
    **{"hidden_size": 4096, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128_256},
    dtype="bfloat16",
)


def test_a_large_model_is_counted_as_it_is_known():
    found = anatomy(LLAMA_3_8B)
    assert found.num_all == 8_030_261_248
    assert base_bytes(found, "none") == pytest.approx(2 * found.num_all, rel=1e-6)
    assert base_bytes(found, "nf4") == pytest.approx(5.70e9, rel=2e-3)  # docs/memory.md
    assert sum(x.nbytes for x in adapter_tensors(found, LoraOptions())) == 41_943_040 * 4
    assert cache_bytes(found) == 128 * 1024
    assert found.is_fused


def test_the_head_is_left_out_once(llama: LlamaConfig):
    found = anatomy(llama)
    assert base_bytes(found, "none") - base_bytes(found, "none", with_lm_head=False) == 4 * 128 * 500
    tied = anatomy(LlamaConfig(**{**llama.to_dict(), "tie_word_embeddings": True}))
    assert base_bytes(tied, "none") == base_bytes(tied, "none", with_lm_head=False)


def test_four_bits_are_counted_as_they_lie_in_memory(llama: LlamaConfig, tmp_path: Path):
    AutoModelForCausalLM.from_config(llama).save_pretrained(tmp_path)
    model = load_causal_lm(BackboneConfig(str(tmp_path), quantization="nf4", dtype="float32"))
    stored = 0
    for tensor in [*model.parameters(), *model.buffers()]:
        stored += tensor.nbytes
        if type(tensor).__name__ == "Params4bit":
            state = tensor.quant_state
            parts = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            stored += sum(part.nbytes for part in parts)
    assert base_bytes(anatomy(llama), "nf4") == stored
    assert nf4_bytes(torch.empty(64, 256)) == 64 * 128 + 256 + 4 + 1092


def test_an_adapter_is_counted_as_it_is_made(llama: LlamaConfig):
    made = new_adapter(AutoModelForCausalLM.from_config(llama).requires_grad_(False), LoraOptions(r=3))
    counted = adapter_tensors(anatomy(llama), LoraOptions(r=3))
    assert sum(x.nbytes for x in counted) == sum(p.nbytes for p in made.parameters() if p.requires_grad)


def test_a_token_passes_its_experts_alone():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}
    found = anatomy(MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    assert found.num_experts == 2 * 8 * 3 * 64 * 96
    assert found.expert_share == 2 / 8
    dense = sum(p.numel() for p in found.layers.parameters() if p.ndim > 1) - found.num_experts
    assert found.num_active == dense + found.num_experts / 4


def test_pictures_are_counted_apart():
    found = anatomy(LlavaConfig(text_config=LlamaConfig(num_hidden_layers=1), dtype="bfloat16"))
    assert len(found.layers) == 1
    assert 3e8 < found.num_tower < 3.5e8
    assert base_bytes(found, "nf4") > 2 * found.num_tower  # the tower is not quantised


@pytest.mark.parametrize(
    ("config", "token"),
    [
        (GPT2Config(n_embd=64, n_layer=2, n_head=4), 2 * 2 * 64 * 4),
        (DeepseekV3Config(num_hidden_layers=1, first_k_dense_replace=1), 128 * (128 + 64 + 128) * 4),
    ],
)
def test_the_cache_of_other_families(config: GPT2Config, token: int):
    assert cache_bytes(anatomy(config, "float32")) == token


def test_stacked_experts_in_four_bits_are_counted_as_they_lie_in_memory(tmp_path: Path):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}
    config = MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=3, dtype="float32")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_causal_lm(BackboneConfig(str(tmp_path), quantization="nf4", dtype="float32"))
    experts = [parameter for parameter in model.parameters() if isinstance(parameter, FourBitWeight)]
    assert len(experts) == 4
    blank = [vars(module)["_parameters"][name] for module, name in expert_parameters(anatomy(config).model)]
    assert [stacked_nf4_bytes(stack) for stack in blank] == [expert.num_bytes for expert in experts]
    dense = sum(stack.nbytes for stack in blank) - sum(expert.num_bytes for expert in experts)
    linear = sum(weight.nbytes - nf4_bytes(weight) for weight in quantised(anatomy(config).model))
    assert base_bytes(anatomy(config), "none") - base_bytes(anatomy(config), "nf4") == dense + linear
