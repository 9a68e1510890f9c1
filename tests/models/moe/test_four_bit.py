"""Experts in 4 bits: the numbers of bitsandbytes, the gradients of the dense weights, and no dense weight kept."""

from __future__ import annotations

import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from lit_rlhf.models.moe.four_bit import FourBitWeight, expert_parameters, has_four_bit_experts, quantise_experts
from tests.tiny_moe import FAMILIES, make_mixture

TOKENS = torch.arange(3, 27)[None]


def stack(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_expert_is_what_bitsandbytes_makes_of_it(dtype):
    weight = stack(dtype)
    packed = FourBitWeight.of(weight)
    for number, expert in enumerate(weight):
        blocks = expert.view(-1, 64)
        codes, state = quantize_4bit(blocks, blocksize=64, compress_statistics=True, quant_type="nf4")
        expected = dequantize_4bit(codes, state).view(40, 32)
        assert torch.equal(packed[number].dense(), expected)
        assert torch.equal(packed.dense()[number], expected)
        assert torch.equal(packed[torch.tensor(number)].t().dense(), expected.T)
    assert packed.dense().dtype == packed.dtype == dtype
    scales = weight.float().view(-1, 64).abs().amax(1, keepdim=True)
    assert 0.1 < ((packed.dense() - weight).float().view(-1, 64) / scales).abs().max() < 0.17  # half the widest gap


def test_weights_that_do_not_fill_their_last_block():
    weight = torch.randn(2, 5, 7)
    packed = FourBitWeight.of(weight)
    scales = weight.flatten(1).abs().amax(1)[:, None, None]
    assert ((packed.dense() - weight) / scales).abs().max() < 0.17
    assert packed[1].t().dense().shape == (7, 5)


def test_it_takes_four_bits_and_a_little_for_scales():
    packed = FourBitWeight.of(torch.randn(2, 256, 128))
    bits = 8 * packed.num_bytes / packed.numel()
    assert 4.1 < bits < 4.2
    assert repr(packed) == "FourBitWeight(shape=(2, 256, 128), dtype=torch.float32, device=cpu)"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_with_them_as_with_their_numbers(family):
    model = make_mixture(family)
    dense = copy.deepcopy(model)
    assert not has_four_bit_experts(model)
    assert quantise_experts(model) == len(expert_parameters(dense)) > 0
    assert has_four_bit_experts(model)
    for (module, name), (packed, _) in zip(expert_parameters(dense), expert_parameters(model), strict=True):
        getattr(module, name).data = getattr(packed, name).dense()
    gradients = []
    for one in (model, dense):
        one.requires_grad_(False)
        inputs = one.get_input_embeddings()(TOKENS).detach().requires_grad_()
        logits = one(inputs_embeds=inputs, use_cache=False).logits
        gradients.append((logits.detach(), *torch.autograd.grad((logits**2).sum(), inputs)))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)
    assert gradients[0][1].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["mixtral", "llama4"])
def test_it_is_read_in_inference_mode(family):
    model = make_mixture(family)
    quantise_experts(model)
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=TOKENS).logits, expected)


def test_autograd_keeps_the_four_bits_and_not_the_numbers():
    weight = torch.nn.Parameter(FourBitWeight.of(stack()), requires_grad=False)
    kept = []
    inputs = torch.randn(5, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        output = torch.nn.functional.linear(inputs, weight[1])
    assert [type(x) for x in kept if x.numel() == 40 * 32] == [FourBitWeight]
    output.sum().backward()
    torch.testing.assert_close(inputs.grad, weight.dense()[1].sum(0).expand(5, 32))


def test_it_moves_is_copied_and_is_cast_as_weights_are():
    model = make_mixture("mixtral")
    quantise_experts(model)
    before = model.model.layers[0].mlp.experts.gate_up_proj.dense()
    assert torch.equal(copy.deepcopy(model).model.layers[0].mlp.experts.gate_up_proj.dense(), before)
    state = model.state_dict()["model.layers.0.mlp.experts.gate_up_proj"]
    assert isinstance(state, FourBitWeight)
    assert torch.equal(state.flatten()[::7], before.flatten()[::7])  # what no rule keeps sees the numbers
    del state
    model.to(torch.bfloat16)
    cast = model.model.layers[0].mlp.experts.gate_up_proj
    assert isinstance(cast, FourBitWeight)
    assert cast.dtype == cast.dense().dtype == torch.bfloat16
    torch.testing.assert_close(cast.dense(), before.bfloat16(), atol=0.0, rtol=1e-2)


def test_frozen_for_good():
    model = make_mixture("mixtral")
    quantise_experts(model)
    assert not any(getattr(module, name).requires_grad for module, name in expert_parameters(model))


@pytest.mark.gpu
def test_on_a_gpu_the_numbers_are_those_of_the_cpu():
    weight = stack(torch.bfloat16)
    torch.testing.assert_close(
        FourBitWeight.of(weight, torch.device("cuda")).dense().cpu(), FourBitWeight.of(weight).dense()
    )
