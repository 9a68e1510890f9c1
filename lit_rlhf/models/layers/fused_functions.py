"""Steps of autograd that a decoder layer of the Llama type is made of, each with a backward pass of its own.

A layer is cut where its backward pass needs a tensor, and each cut keeps what cannot be computed again cheaply:

    x -> norm -> q, k, v -> rotation          keeps x, 1/rms
      -> attention                            keeps q, k, v, its output a
    h = x + o(a)                              keeps a (the same memory)
    y = h + down(silu(gate(n)) * up(n)),      keeps h, 1/rms, gate(n), up(n)
        n = norm(h)

Normed tensors, silu(gate) * up and everything inside the adapters are formed again in the backward pass. Without
grouped queries that leaves six hidden and two MLP widths of numbers per token and layer, where the stock layer with
PEFT keeps about twice as much. Hand-written LoRA gradients that recompute are Unsloth's idea.

Every step treats each token by itself, so on a CPU it goes through the rows in portions
(:mod:`lit_rlhf.models.layers.products`), and what it needs in passing is no larger than one.

Shape letters: T tokens of the forest, H hidden size, O output features, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from lit_rlhf.models.layers.lora_linear import Projection, projected, projected_backward
from lit_rlhf.models.layers.products import in_portions, portions_of


class Norm(NamedTuple):
    """An RMS norm with a frozen weight (H,)."""

    weight: Tensor
    epsilon: float

    def inverse_rms(self, inputs: Tensor) -> Tensor:
        """(T, 1) float32."""
        squares = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True, dtype=torch.float32).square_()
        return squares.div_(inputs.shape[-1]).add_(self.epsilon).rsqrt_()

    def __call__(self, inputs: Tensor, inverse_rms: Tensor) -> Tensor:
        """(T, H), in new memory."""
        return (inputs * inverse_rms).to(inputs.dtype).mul_(self.weight)

    def backward(self, gradient: Tensor, inputs: Tensor, inverse_rms: Tensor) -> Tensor:
        """Gradient (T, H) of the inputs. May overwrite ``gradient``."""
        scaled = gradient.float().mul_(self.weight)
        along = torch.linalg.vecdot(scaled, inputs.float())[:, None].mul_(inverse_rms**3).div_(inputs.shape[-1])
        return scaled.mul_(inverse_rms).addcmul_(inputs, along, value=-1.0).to(inputs.dtype)


class Turn(NamedTuple):
    """Rotary positions: the pairs (i, i + D / 2) of every head turn by the angles of its token.

    Args:
        cos: (T, 1, D) of the angles.
        sin: the same.
    """

    cos: Tensor
    sin: Tensor

    @property
    def back(self) -> Turn:
        """The way back, which gradients go."""
        return Turn(self.cos, -self.sin.roll(self.sin.shape[-1] // 2, -1))

    def of(self, rows: slice | Tensor) -> Turn:
        """That of some tokens: a range of them, or their indices (Q,)."""
        return Turn(self.cos[rows], self.sin[rows])

    def __call__(self, inputs: Tensor) -> Tensor:
        """(T, heads * D), or with heads and D apart, turned; in new memory."""
        heads = inputs.view(len(inputs), -1, self.cos.shape[-1])
        output = heads * self.cos
        (first, second), (first_sin, second_sin) = heads.chunk(2, -1), self.sin.chunk(2, -1)
        first_output, second_output = output.chunk(2, -1)
        first_output.addcmul_(second, first_sin, value=-1.0)
        second_output.addcmul_(first, second_sin)
        return output.view_as(inputs)


class GatedMlp(NamedTuple):
    """What the second half of a layer computes with."""

    norm: Norm
    gate: Projection
    up: Projection
    down: Projection


def project(
    inputs: Tensor, norm: Norm, projections: Sequence[Projection], turns: Sequence[Turn | None]
) -> tuple[Tensor, ...]:
    """Outputs (T, O) of linear layers that read normed ``inputs`` (T, H).

    Args:
        inputs: of the layer.
        norm: before its projections.
        projections: the linear layers.
        turns: for each of them, how its output is turned; None = not at all.
    """
    return _NormedProjections.of(inputs, norm, projections, turns, *_adapters(*projections))


def turned(inputs: Tensor, turn: Turn) -> Tensor:
    """``inputs`` (T, heads, D) at their positions."""
    return _Rotation.of(inputs, turn)


def add_projection(residual: Tensor, inputs: Tensor, projection: Projection) -> Tensor:
    """``residual + inputs W^T`` (T, O)."""
    return _AddProjection.of(residual, inputs, projection, *_adapters(projection))


def add_gated_mlp(inputs: Tensor, mlp: GatedMlp) -> Tensor:
    """``inputs + down(silu(gate(n)) * up(n))`` (T, H), n = norm(inputs)."""
    return _AddGatedMlp.of(inputs, mlp, *_adapters(mlp.gate, mlp.up, mlp.down))


def _adapters(*projections: Projection) -> list[Tensor | None]:
    """A and B of each layer in turn: what autograd must see to pass their gradients on."""
    pairs = [(None, None) if p.adapter is None else (p.adapter.a, p.adapter.b) for p in projections]
    return [matrix for pair in pairs for matrix in pair]


class _Function(torch.autograd.Function):
    """A step of autograd that costs no more than its forward pass where nothing is differentiated."""

    @classmethod
    def of(cls, *args: Any) -> Any:
        """``apply``; autograd takes longer to enter a step than a step takes that computes few rows."""
        return cls.apply(*args) if torch.is_grad_enabled() else cls.forward(_Nothing(), *args)


class _Nothing:
    """The context of a step that no backward pass follows."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep none of them."""


class _NormedProjections(_Function):
    """``norm(x) W^T`` for several W, turned. Keeps x and its 1/rms."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        norm: Norm,
        projections: Sequence[Projection],
        turns: Sequence[Turn | None],
        *adapters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        inverse_rms = norm.inverse_rms(inputs)
        ctx.norm, ctx.projections, ctx.turns = norm, projections, turns
        ctx.save_for_backward(inputs, inverse_rms)
        portions, projections = _portioned(inputs, projections)

        def outputs(portion: slice) -> list[Tensor]:
            straight = projected(norm(inputs[portion], inverse_rms[portion]), projections)
            return [x if turn is None else turn.of(portion)(x) for x, turn in zip(straight, turns, strict=True)]

        return tuple(in_portions(portions, outputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, inverse_rms = ctx.saved_tensors
        portions, projections = _portioned(inputs, ctx.projections)
        turns = [turn and turn.back for turn in ctx.turns]
        adapters = _Sums()

        def for_inputs(portion: slice) -> list[Tensor]:
            pairs = zip(turns, gradients, strict=True)
            straight = [g[portion] if turn is None else turn.of(portion)(g[portion]) for turn, g in pairs]
            gradient, for_adapters = projected_backward(
                ctx.norm(inputs[portion], inverse_rms[portion]),
                projections,
                straight,
                wants_inputs=ctx.needs_input_grad[0],
                wants_adapters=any(ctx.needs_input_grad[4:]),
            )
            adapters.add(for_adapters)
            return [] if gradient is None else [ctx.norm.backward(gradient, inputs[portion], inverse_rms[portion])]

        found = in_portions(portions, for_inputs)
        return (found[0] if found else None), None, None, None, *adapters.totals


class _Rotation(_Function):
    """Rotary positions alone. Keeps the angles."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, turn: Turn) -> Tensor:
        ctx.turn = turn
        return turn(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.turn.back(gradient.contiguous()), None


class _AddProjection(_Function):
    """``r + x W^T``. Keeps x."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, inputs: Tensor, projection: Projection, *adapter: Tensor | None) -> Tensor:
        ctx.projection = projection
        ctx.save_for_backward(inputs)
        portions, projections = _portioned(inputs, [projection])
        outputs = torch.empty_like(residual)
        for portion in portions:
            torch.add(projected(inputs[portion], projections)[0], residual[portion], out=outputs[portion])
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        portions, projections = _portioned(inputs, [ctx.projection])
        adapter = _Sums()

        def for_inputs(portion: slice) -> list[Tensor]:
            for_portion, for_adapter = projected_backward(
                inputs[portion],
                projections,
                [gradient[portion]],
                wants_inputs=ctx.needs_input_grad[1],
                wants_adapters=any(ctx.needs_input_grad[3:]),
            )
            adapter.add(for_adapter)
            return [] if for_portion is None else [for_portion]

        found = in_portions(portions, for_inputs)
        return gradient, (found[0] if found else None), None, *adapter.totals


class _AddGatedMlp(_Function):
    """``x + down(silu(gate(n)) * up(n))``, n = norm(x). Keeps x, its 1/rms, gate(n) and up(n)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, mlp: GatedMlp, *adapters: Tensor | None) -> Tensor:
        inverse_rms = mlp.norm.inverse_rms(inputs)
        ctx.mlp = mlp
        kept: list[Tensor] = []
        portions, (gate, up, down) = _portioned(inputs, [mlp.gate, mlp.up, mlp.down])
        outputs = torch.empty_like(inputs)
        for portion in portions:
            gated, upped = projected(mlp.norm(inputs[portion], inverse_rms[portion]), [gate, up])
            kept += [gated, upped]
            torch.add(projected(silu(gated).mul_(upped), [down])[0], inputs[portion], out=outputs[portion])
        ctx.save_for_backward(inputs, inverse_rms, *kept)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, inverse_rms, *kept = ctx.saved_tensors
        mlp, wants_adapters = ctx.mlp, any(ctx.needs_input_grad[2:])
        portions, (gate, up, down) = _portioned(inputs, [mlp.gate, mlp.up, mlp.down])
        sums, for_inputs = _Sums(), torch.empty_like(inputs) if ctx.needs_input_grad[0] else None

        def through_mlp(portion: slice, gated: Tensor, upped: Tensor) -> Tensor | None:
            active = silu(gated)
            product = active * upped
            for_product, for_down = projected_backward(
                product, [down], [gradient[portion]], wants_inputs=True, wants_adapters=wants_adapters
            )
            assert for_product is not None
            for_up = torch.mul(for_product, active, out=product)
            del active
            for_gate = torch.ops.aten.silu_backward(for_product.mul_(upped), gated)
            del for_product
            normed = mlp.norm(inputs[portion], inverse_rms[portion])
            for_normed, for_both = projected_backward(
                normed,
                [gate, up],
                [for_gate, for_up],
                wants_inputs=for_inputs is not None,
                wants_adapters=wants_adapters,
            )
            sums.add([*for_both, *for_down])
            return for_normed

        for portion, gated, upped in zip(portions, kept[::2], kept[1::2], strict=True):
            for_normed = through_mlp(portion, gated, upped)
            if for_normed is not None and for_inputs is not None:
                for_mlp = mlp.norm.backward(for_normed, inputs[portion], inverse_rms[portion])
                torch.add(for_mlp, gradient[portion], out=for_inputs[portion])
        return for_inputs, None, *sums.totals


class _Sums:
    """Gradients of adapters, added up over portions of the rows."""

    totals: list[Tensor | None]

    def __init__(self) -> None:
        self.totals = []

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add those of one portion, which may be overwritten."""
        if not self.totals:
            self.totals = list(gradients)
            return
        for total, one in zip(self.totals, gradients, strict=True):
            if total is not None and one is not None:
                total.add_(one)


def _portioned(inputs: Tensor, projections: Sequence[Projection]) -> tuple[list[slice], Sequence[Projection]]:
    """Portions of rows (T, I), and layers that are made ready once where there are several."""
    portions = portions_of(len(inputs), inputs.device)
    return portions, projections if len(portions) == 1 else [projection.ready(inputs) for projection in projections]
