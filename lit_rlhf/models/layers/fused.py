"""Decoder layers of the Llama type that keep less for the backward pass and do less in it.

A layer is cut where its backward pass needs a tensor, and each cut keeps what cannot be computed again cheaply:

    x -> norm -> q, k, v -> rotation          keeps x, 1/rms
      -> attention                            keeps q, k, v, its output a
    h = x + o(a)                              keeps a (the same memory)
    y = h + down(silu(gate(n)) * up(n)),      keeps h, 1/rms, gate(n), up(n)
        n = norm(h)

Normed tensors, silu(gate) * up and everything inside the adapters are formed again in the backward pass. Without
grouped queries that leaves six hidden and two MLP widths of numbers per token and layer, where the stock layer with
PEFT keeps about twice as much. The algebra of the adapters is in :mod:`lit_rlhf.models.layers.lora_linear`;
hand-written LoRA gradients that recompute are Unsloth's idea.

The last layer computes queries, output and MLP only of the rows that the caller reads, where a
:class:`lit_rlhf.models.layers.attention.ForestLayout` says which; it then returns only those rows.

A layer keeps its parameters, its place and its name. At each call it looks at what is on: it computes forests, and
takes the stock path for ordinary rows (generation, the padded layout) and for what does not fit: adapter dropout, DoRA,
trained weights, int8, autocast, hooks on inner modules.

Shape letters: T tokens of the forest, H hidden size, I MLP width, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3RMSNorm

from lit_rlhf.models.layers.attention import ForestLayout, forest_attention
from lit_rlhf.models.layers.cached_attention import CachedRows
from lit_rlhf.models.layers.lora_linear import Projection, projected, projected_backward, projection_of


def fuse(model: PreTrainedModel) -> int:
    """Let the decoder layers of a model that are of the Llama type compute as this module says.

    Args:
        model: of any kind. Adapters may be on it, or come later.

    Returns:
        How many layers were changed. All others stay as they are.
    """
    layers = [module for module in model.modules() if type(module) in _FUSED]
    for layer in layers:
        layer.__class__ = _FUSED[type(layer)]
    return len(layers)


class _FusedLayer(GradientCheckpointingLayer):
    """What stands before a stock decoder layer in the order of its classes."""

    self_attn: Any
    mlp: Any
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def forward(
        self, hidden_states: Tensor, *args: Any, forest_layout: ForestLayout | CachedRows | None = None, **kwargs: Any
    ) -> Tensor:
        """Hidden states (1, T, H) after the layer; after the last one, of the layout's last queries alone."""
        if forest_layout is None:
            return super().forward(hidden_states, *args, **kwargs)
        layout: ForestLayout | CachedRows = forest_layout
        config = self.self_attn.config
        if self.self_attn.layer_idx == config.num_hidden_layers - 1 and forest_layout.last_layer is not None:
            layout = forest_layout.last_layer
        parts = None if args else self._parts_for(hidden_states, layout)
        if parts is not None:
            return self._compute(hidden_states[0], parts, layout, **kwargs)[None]
        states = super().forward(hidden_states, *args, forest_layout=forest_layout, **kwargs)
        return states if layout.rows is None else states.index_select(1, layout.rows)

    def _parts_for(self, hidden_states: Tensor, layout: ForestLayout | CachedRows) -> _Parts | None:
        """What to compute with."""
        if not isinstance(layout, CachedRows):
            return self._parts(hidden_states)
        return layout.parts.of(self.self_attn.layer_idx, lambda: self._parts(hidden_states), hidden_states.dtype)

    def _parts(self, hidden_states: Tensor) -> _Parts | None:
        """What to compute with; None if something does not fit."""
        attention, mlp, dtype = self.self_attn, self.mlp, hidden_states.dtype
        if attention.config.hidden_act != "silu" or torch.is_autocast_enabled(hidden_states.device.type):
            return None
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.modules() if module is not self):
            return None
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        parts = (
            _norm_of(self.input_layernorm, dtype),
            *(projection_of(linear, dtype) for linear in linears),
            _norm_of(self.post_attention_layernorm, dtype),
            *(projection_of(linear, dtype) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
        )
        return None if any(part is None for part in parts) else _Parts(*cast(Any, parts))

    def _compute(self, inputs: Tensor, parts: _Parts, layout: ForestLayout | CachedRows, **kwargs: Any) -> Tensor:
        """(T, H) to the hidden states (Q, H) of the layout's queries."""
        if layout.rows is None:
            residual = inputs
            query, key, value = _project(inputs, parts.input_norm, parts.query, parts.key, parts.value)
        else:
            residual = inputs.index_select(0, layout.rows)
            (query,) = _project(residual, parts.input_norm, parts.query)
            key, value = _project(inputs, parts.input_norm, parts.key, parts.value)
        attended = self._attend(query, key, value, layout, **kwargs)
        hidden = _AddProjection.of(residual, attended, parts.output, *_adapters(parts.output))
        return _AddGatedMlp.of(hidden, parts, *_adapters(parts.gate, parts.up, parts.down))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: ForestLayout | CachedRows,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        **kwargs: Any,
    ) -> Tensor:
        """Output (Q, heads * D) of attention, before its projection."""
        attention = self.self_attn
        query, key, value = (x.unflatten(-1, (-1, attention.head_dim)) for x in (query, key, value))
        if isinstance(attention, Qwen3Attention):
            query, key = attention.q_norm(query), attention.k_norm(key)
        cos, sin = (x[0].unsqueeze(1) for x in position_embeddings)
        key = _Rotation.of(key, cos, sin)
        if layout.rows is not None:
            cos, sin = cos.index_select(0, layout.rows), sin.index_select(0, layout.rows)
        query = _Rotation.of(query, cos, sin)
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        options = {
            "dropout": attention.attention_dropout if self.training else 0.0,
            "scaling": attention.scaling,
            "sliding_window": _window(attention),
        }
        output, _ = forest_attention(attention, query, key, value, forest_layout=layout, **options, **kwargs)
        return output[0].flatten(1)


_FUSED: dict[type, type] = {
    stock: type(stock.__name__, (_FusedLayer, stock), {"__module__": __name__})
    for stock in (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
}
"""Stock decoder layers and what takes their place. The name stays: sharding and device maps go by it."""


class _Norm(NamedTuple):
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


class _Parts(NamedTuple):
    """What a decoder layer computes with at one call."""

    input_norm: _Norm
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    mlp_norm: _Norm
    gate: Projection
    up: Projection
    down: Projection


def _norm_of(module: nn.Module, dtype: torch.dtype) -> _Norm | None:
    if not isinstance(module, LlamaRMSNorm | MistralRMSNorm | Qwen2RMSNorm | Qwen3RMSNorm):
        return None
    fits = module.weight.dtype == dtype and not module.weight.requires_grad
    return _Norm(module.weight, module.variance_epsilon) if fits else None


def _window(attention: nn.Module) -> int | None:
    """The latest tokens that a query sees; None = all."""
    if isinstance(attention, MistralAttention):
        return attention.config.sliding_window
    return attention.sliding_window if isinstance(attention, Qwen2Attention | Qwen3Attention) else None


def _adapters(*projections: Projection) -> list[Tensor | None]:
    """A and B of each layer in turn: what autograd must see to pass their gradients on."""
    pairs = [(None, None) if p.adapter is None else (p.adapter.a, p.adapter.b) for p in projections]
    return [matrix for pair in pairs for matrix in pair]


def _project(inputs: Tensor, norm: _Norm, *projections: Projection) -> tuple[Tensor, ...]:
    """Outputs (T, O) of linear layers that read normed ``inputs`` (T, H)."""
    return _NormedProjections.of(inputs, norm, projections, *_adapters(*projections))


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
    """``norm(x) W^T`` for several W. Keeps x and its 1/rms."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, norm: _Norm, projections: Sequence[Projection], *adapters: Tensor | None
    ) -> tuple[Tensor, ...]:
        inverse_rms = norm.inverse_rms(inputs)
        ctx.norm, ctx.projections = norm, projections
        ctx.save_for_backward(inputs, inverse_rms)
        return projected(norm(inputs, inverse_rms), projections)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, inverse_rms = ctx.saved_tensors
        gradient, adapters = projected_backward(
            ctx.norm(inputs, inverse_rms),
            ctx.projections,
            gradients,
            wants_inputs=ctx.needs_input_grad[0],
            wants_adapters=any(ctx.needs_input_grad[3:]),
        )
        if gradient is not None:
            gradient = ctx.norm.backward(gradient, inputs, inverse_rms)
        return gradient, None, None, *adapters


class _Rotation(_Function):
    """Rotary positions on (T, heads, D): pairs (i, i + D / 2) turn by the angles (T, 1, D). Keeps the angles alone."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(inputs, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin.roll(sin.shape[-1] // 2, -1)), None, None


def _rotated(inputs: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    output = inputs * cos
    (first, second), (first_sin, second_sin) = inputs.chunk(2, -1), sin.chunk(2, -1)
    first_output, second_output = output.chunk(2, -1)
    first_output.addcmul_(second, first_sin, value=-1.0)
    second_output.addcmul_(first, second_sin)
    return output


class _AddProjection(_Function):
    """``residual + x W^T``. Keeps x."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, inputs: Tensor, projection: Projection, *adapter: Tensor | None) -> Tensor:
        ctx.projection = projection
        ctx.save_for_backward(inputs)
        return projected(inputs, [projection])[0].add_(residual)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        for_inputs, adapter = projected_backward(
            inputs,
            [ctx.projection],
            [gradient],
            wants_inputs=ctx.needs_input_grad[1],
            wants_adapters=any(ctx.needs_input_grad[3:]),
        )
        return gradient, for_inputs, None, *adapter


class _AddGatedMlp(_Function):
    """``x + down(silu(gate(n)) * up(n))``, n = norm(x). Keeps x, its 1/rms, gate(n) and up(n)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, parts: _Parts, *adapters: Tensor | None) -> Tensor:
        inverse_rms = parts.mlp_norm.inverse_rms(inputs)
        gate, up = projected(parts.mlp_norm(inputs, inverse_rms), [parts.gate, parts.up])
        ctx.parts = parts
        ctx.save_for_backward(inputs, inverse_rms, gate, up)
        return projected(silu(gate).mul_(up), [parts.down])[0].add_(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, inverse_rms, gate, up = ctx.saved_tensors
        parts, wants_adapters = ctx.parts, any(ctx.needs_input_grad[2:])
        active = silu(gate)
        product = active * up
        for_product, down_adapter = projected_backward(
            product, [parts.down], [gradient], wants_inputs=True, wants_adapters=wants_adapters
        )
        assert for_product is not None
        for_up = torch.mul(for_product, active, out=product)
        del active
        for_gate = torch.ops.aten.silu_backward(for_product.mul_(up), gate)
        del for_product
        for_inputs, adapters = projected_backward(
            parts.mlp_norm(inputs, inverse_rms),
            [parts.gate, parts.up],
            [for_gate, for_up],
            wants_inputs=ctx.needs_input_grad[0],
            wants_adapters=wants_adapters,
        )
        if for_inputs is not None:
            for_inputs = parts.mlp_norm.backward(for_inputs, inputs, inverse_rms).add_(gradient)
        return for_inputs, None, *adapters, *down_adapter
