"""Steps of fused layers against autograd, all rows at once and in portions."""

from __future__ import annotations

from itertools import chain

import bitsandbytes
import pytest
import torch
from torch import nn

from lit_rlhf.models.layers import fused_functions, products
from lit_rlhf.models.layers.fused_functions import GatedMlp, Norm, Turn, add_gated_mlp, add_projection, project, turned
from lit_rlhf.models.layers.lora_linear import Adapter, Projection, quant_state_of

T, H, WIDE, D, R = 22, 64, 128, 16, 3


@pytest.fixture(params=["at once", "in portions"])
def rows(request, monkeypatch):
    """How rows are gone through: all together, or by eight with six left over."""
    if request.param == "in portions":
        monkeypatch.setattr(products, "PORTION", 8)
        assert [part.stop - part.start for part in products.portions_of(T, torch.device("cpu"))] == [8, 8, 6]
    return request.param


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(False)


def layer(outputs, inputs, adapter=True, four_bit=False):
    """A frozen layer with an adapter, and the same as a function of its parts."""
    weight, bias = randn(outputs, inputs) / inputs**0.5, randn(outputs)
    matrices = (
        ((randn(R, inputs) / inputs**0.5).requires_grad_(), (randn(outputs, R) / 2).requires_grad_()) if adapter else ()
    )
    state = None
    if four_bit:
        linear = bitsandbytes.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        linear.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
        state, codes = quant_state_of(linear), linear.weight
        weight = bitsandbytes.functional.dequantize_4bit(codes.data, state)
    projection = Projection(codes if four_bit else weight, bias, state, Adapter(*matrices, 0.7) if adapter else None)

    def dense(x):
        y = x @ weight.T + bias
        return y + 0.7 * (x @ matrices[0].T) @ matrices[1].T if adapter else y

    return projection, dense, matrices


def normed(x, norm):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.epsilon) * norm.weight


def turn_of(num_rows):
    """Angles of both halves of a head that differ, as no model has them, to tell the halves apart."""
    angles = randn(num_rows, 1, D)
    return Turn(angles.cos(), angles.sin())


def turned_by_hand(x, turn):
    heads = x.unflatten(-1, (-1, D))
    first, second = heads.chunk(2, -1)
    return (heads * turn.cos + torch.cat([-second, first], -1) * turn.sin).view_as(x)


def assert_the_same(ours, theirs, learnt):
    """Values, and gradients of an uneven sum."""
    found = []
    for outputs in (ours, theirs):
        loss = sum((y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum() for y in outputs)
        found.append(torch.autograd.grad(loss, learnt))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-5, atol=5e-4)


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("learns_inputs", [False, True])
def test_normed_projections(rows, learns_inputs, four_bit):
    x, norm, turn = randn(T, H).requires_grad_(learns_inputs), Norm(randn(H), 1e-5), turn_of(T)
    made = [layer(WIDE, H, four_bit=four_bit), layer(32, H, adapter=False, four_bit=four_bit), layer(48, H)]
    projections, dense, matrices = zip(*made, strict=True)
    ours = project(x, norm, projections, [turn, None, turn])
    theirs = [f(normed(x, norm)) for f in dense]
    theirs[0], theirs[2] = turned_by_hand(theirs[0], turn), turned_by_hand(theirs[2], turn)
    assert_the_same(ours, theirs, [*chain.from_iterable(matrices), *([x] if learns_inputs else [])])


@pytest.mark.parametrize("four_bit", [False, True])
def test_an_added_projection(rows, four_bit):
    residual, x = randn(T, H).requires_grad_(), randn(T, WIDE).requires_grad_()
    projection, dense, matrices = layer(H, WIDE, four_bit=four_bit)
    assert_the_same([add_projection(residual, x, projection)], [residual + dense(x)], [residual, x, *matrices])


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("adapted", [(True, True, True), (False, True, False), (True, False, False)])
def test_an_added_gated_mlp(rows, adapted, four_bit):
    x, norm = randn(T, H).requires_grad_(), Norm(randn(H), 1e-5)
    shapes = [(WIDE, H), (WIDE, H), (H, WIDE)]
    made = [layer(*shape, adapter=has, four_bit=four_bit) for shape, has in zip(shapes, adapted, strict=True)]
    projections, (gate, up, down), matrices = zip(*made, strict=True)
    n = normed(x, norm)
    theirs = x + down(nn.functional.silu(gate(n)) * up(n))
    assert_the_same([add_gated_mlp(x, GatedMlp(norm, *projections))], [theirs], [x, *chain.from_iterable(matrices)])


def test_heads_alone_are_turned():
    x, turn = randn(T, 4, D).requires_grad_(), turn_of(T)
    assert_the_same([turned(x, turn)], [turned_by_hand(x.flatten(1), turn).view_as(x)], [x])


def test_a_turn_back_undoes_it_and_rows_are_chosen():
    x, angles, turn = randn(T, 4 * D), randn(T, 1, D // 2).repeat(1, 1, 2), turn_of(T)
    alike = Turn(angles.cos(), angles.sin())
    torch.testing.assert_close(alike.back(alike(x)), x)
    chosen = torch.tensor([3, 7])
    torch.testing.assert_close(turn.of(chosen)(x[chosen]), turn(x)[chosen])
    torch.testing.assert_close(turn.of(slice(4, 9))(x[4:9]), turn(x)[4:9])


def test_weights_are_made_whole_once_for_all_portions(monkeypatch):
    """Several portions share a dequantised or folded weight; a single one makes it for its own product."""
    made, fold = [], Projection._folded
    monkeypatch.setattr(Projection, "_folded", lambda self, dtype: made.append(1) or fold(self, dtype))
    norm, projections = Norm(randn(H), 1e-5), [layer(WIDE, H)[0], layer(WIDE, H)[0], layer(H, WIDE)[0]]
    with torch.no_grad():
        add_gated_mlp(randn(2 * products.PORTION + 3, H), GatedMlp(norm, *projections))
    assert len(made) == 3


def test_what_nothing_is_learnt_from_needs_no_graph():
    x, norm = randn(T, H), Norm(randn(H), 1e-5)
    projection = layer(WIDE, H)[0]
    with torch.no_grad():
        (found,) = project(x, norm, [projection], [None])
    assert not found.requires_grad
    assert fused_functions._Nothing().save_for_backward(x) is None
