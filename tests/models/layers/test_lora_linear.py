"""The algebra of LoRA layers against autograd and against PEFT's own layer."""

from __future__ import annotations

from typing import ClassVar

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lit_rlhf.models.layers.lora_linear import Adapter, Projection, projected, projected_backward, projection_of

I, O, R = 12, 10, 3  # noqa: E741


def layers(dtype=torch.float32, adapted=(True, False, True)):
    """Three layers of one input, with and without bias, some with adapters of different rank and scale."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    result = []
    for number, has_adapter in enumerate(adapted):
        rank, outputs = R + number, O + number
        adapter = Adapter(randn(rank, I), randn(outputs, rank), 0.5 + number) if has_adapter else None
        result.append(Projection(randn(outputs, I), randn(outputs) if number else None, None, adapter))
    return result


def dense(projection, x):
    """The layer as one would write it down."""
    y = x @ projection.weight.T + (0.0 if projection.bias is None else projection.bias)
    if projection.adapter is not None:
        a, b, scale = projection.adapter
        y = y + scale * (x @ a.T) @ b.T
    return y


@pytest.mark.parametrize("num_tokens", [1, 2, 40], ids=["one", "beside", "folded"])
@pytest.mark.parametrize("adapted", [(True, False, True), (True, True, True), (False, False, False)])
def test_outputs_and_gradients(num_tokens, adapted):
    group = layers(torch.float32, adapted)
    assert all(p.adapter is None or p.adapter.is_folded(torch.zeros(num_tokens, I)) == (num_tokens > 10) for p in group)
    x = torch.randn(num_tokens, I, requires_grad=True)
    matrices = [m.requires_grad_() for p in group if p.adapter is not None for m in p.adapter[:2]]
    expected = [dense(p, x) for p in group]
    weights = [torch.randn_like(y) for y in expected]
    loss = sum((w * y).sum() for w, y in zip(weights, expected, strict=True))
    wanted = torch.autograd.grad(loss, [x, *matrices])
    with torch.no_grad():
        for ours, theirs in zip(projected(x, group), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=3e-5, atol=3e-5)
        for_x, found = projected_backward(x, group, weights, wants_inputs=True, wants_adapters=True)
    torch.testing.assert_close(for_x, wanted[0], rtol=3e-5, atol=3e-5)
    assert [gradient is not None for gradient in found] == [has for has in adapted for _ in range(2)]
    for ours, theirs in zip([g for g in found if g is not None], wanted[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("num_tokens", [1, 2, 4, 7, 40])
def test_packed_layers_compute_the_same(num_tokens):
    x, group = torch.randn(num_tokens, I), layers()
    packed = [projection.packed() for projection in group]
    assert [projection.num_weights for projection in group] == [I * (O + number) for number in range(3)]
    for ours, projection in zip(projected(x, packed), group, strict=True):
        assert ours.shape == (num_tokens, projection.weight.shape[0])
        torch.testing.assert_close(ours, dense(projection, x), rtol=3e-5, atol=3e-5)


def test_only_what_is_wanted():
    group, x = layers(), torch.randn(5, I)
    gradients = [torch.randn(5, O + number) for number in range(3)]
    for_x, found = projected_backward(x, group, gradients, wants_inputs=False, wants_adapters=False)
    assert for_x is None
    assert found == [None] * 6


def test_a_layer_is_made_ready_once():
    """Its adapter is in the weight then, whatever number of rows it meets afterwards."""
    group, x = layers(), torch.randn(40, I)
    ready = [projection.ready(x) for projection in group]
    assert [projection.holds_adapter for projection in ready] == [True, False, True]
    assert ready[0].ready(x[:2]).weight is ready[0].weight
    few = x[:2]
    for ours, projection in zip(projected(few, ready), group, strict=True):
        torch.testing.assert_close(ours, dense(projection, few), rtol=3e-5, atol=3e-5)
    gradients = [torch.randn(2, O + number) for number in range(3)]
    found = [
        projected_backward(few, some, gradients, wants_inputs=True, wants_adapters=True) for some in (ready, group)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=3e-5, atol=3e-5)


def test_half_precision_keeps_a_small_adapter_apart():
    """An update below the weight's last bit is lost when folded in; beside the weight it counts."""
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    adapter = Adapter(torch.full((1, 4), 1e-3), torch.full((4, 1), 1e-1), 1.0)
    x = torch.cat([torch.ones(20, 2), -torch.ones(20, 2)], dim=1).bfloat16()
    skewed = Adapter(adapter.a * torch.tensor([1.0, 1.0, 0.0, 0.0]), adapter.b, 1.0)
    assert not skewed.is_folded(x)
    (output,) = projected(x, [Projection(weight, None, None, skewed)])
    torch.testing.assert_close(output.float(), torch.full((20, 4), 2e-4), rtol=1e-2, atol=0)
    (for_b,) = projected_backward(
        x, [Projection(weight, None, None, skewed)], [torch.ones_like(output)], wants_inputs=True, wants_adapters=True
    )[1][1:]
    assert for_b.dtype == torch.float32


class Net(nn.Module):
    """A place for one layer, that PEFT can find."""

    options: ClassVar[dict] = {"r": R, "lora_alpha": 2 * R, "target_modules": ["linear"]}

    def __init__(self, linear, **options):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(**{**self.options, **options}), self)
        for name, parameter in self.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)


def test_a_layer_of_peft_becomes_a_projection():
    net, x = Net(nn.Linear(I, O), use_rslora=True), torch.randn(30, I)
    found = projection_of(net.linear, torch.float32)
    torch.testing.assert_close(projected(x, [found])[0], net.linear(x), rtol=3e-5, atol=3e-5)
    net.linear.enable_adapters(False)
    assert projection_of(net.linear, torch.float32).adapter is None
    torch.testing.assert_close(
        projected(x, [projection_of(net.linear, torch.float32)])[0], net.linear(x), rtol=3e-5, atol=3e-5
    )


def test_four_bits_are_dequantised_for_one_product():
    linear = bitsandbytes.nn.Linear4bit(64, 64, bias=True, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    linear.support_avx512bf16_for_cpu = False
    x = torch.randn(3, 64)
    expected = linear(x)
    found = projection_of(linear.requires_grad_(False), torch.float32)
    for projection in (found, found.packed()):
        torch.testing.assert_close(projected(x, [projection])[0], expected, rtol=3e-5, atol=3e-5)
    assert found.num_weights == 64 * 64
    assert projection_of(linear, torch.bfloat16) is None


def test_what_is_no_projection():
    assert projection_of(nn.Linear(I, O), torch.float32) is None  # trained
    assert projection_of(nn.Linear(I, O).requires_grad_(False), torch.bfloat16) is None
    assert projection_of(nn.Bilinear(I, I, O).requires_grad_(False), torch.float32) is None
    dropping = Net(nn.Linear(I, O), lora_dropout=0.5)
    assert projection_of(dropping.linear, torch.float32) is None
    assert projection_of(dropping.eval().linear, torch.float32) is not None
    assert projection_of(Net(nn.Linear(I, O), use_dora=True).linear, torch.float32) is None
    assert projection_of(Net(nn.Linear(I, O), lora_bias=True).linear, torch.float32) is None
    merged = Net(nn.Linear(I, O))
    merged.linear.merge()
    assert projection_of(merged.linear, torch.float32) is None
    two = Net(nn.Linear(I, O))
    inject_adapter_in_model(LoraConfig(**Net.options), two, adapter_name="second")
    two.linear.set_adapter(["default", "second"])
    assert projection_of(two.linear, torch.float32) is None
