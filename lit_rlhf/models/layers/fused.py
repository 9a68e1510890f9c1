"""Decoder layers of the Llama type that keep less for the backward pass and do less in it.

What a layer keeps and forms again is in :mod:`lit_rlhf.models.layers.fused_functions`, the algebra of the adapters in
:mod:`lit_rlhf.models.layers.lora_linear`.

The last layer computes queries, output and MLP only of the rows that the caller reads, where a
:class:`lit_rlhf.models.layers.attention.ForestLayout` says which; it then returns only those rows.

A layer keeps its parameters, its place and its name. At each call it looks at what is on: it computes forests, and
takes the stock path for ordinary rows (generation, the padded layout) and for what does not fit: adapter dropout, DoRA,
trained weights, int8, autocast, hooks on inner modules.

Shape letters: T tokens of the forest, Q queries, H hidden size, D head dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3RMSNorm

from lit_rlhf.models.layers.attention import ForestLayout, forest_attention
from lit_rlhf.models.layers.cached_attention import CachedRows
from lit_rlhf.models.layers.fused_functions import GatedMlp, Norm, Turn, add_gated_mlp, add_projection, project, turned
from lit_rlhf.models.layers.lora_linear import Projection, projection_of


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
            return self._compute(hidden_states.squeeze(0), parts, layout, **kwargs)[None]
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

    def _compute(
        self,
        inputs: Tensor,
        parts: _Parts,
        layout: ForestLayout | CachedRows,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        **kwargs: Any,
    ) -> Tensor:
        """(T, H) to the hidden states (Q, H) of the layout's queries."""
        norm, attention = parts.input_norm, self.self_attn
        residual = inputs if layout.rows is None else inputs.index_select(0, layout.rows)
        turn = Turn(*(x[0].unsqueeze(1) for x in position_embeddings))
        own_turn = turn if layout.rows is None else turn.of(layout.rows)
        # Heads that are normed are turned behind that.
        is_normed = isinstance(attention, Qwen3Attention)
        early, own_early = (None, None) if is_normed else (turn, own_turn)
        if layout.rows is None:
            query, key, value = project(inputs, norm, [parts.query, parts.key, parts.value], [early, early, None])
        else:
            (query,) = project(residual, norm, [parts.query], [own_early])
            key, value = project(inputs, norm, [parts.key, parts.value], [early, None])
        query, key, value = (x.unflatten(-1, (-1, attention.head_dim)) for x in (query, key, value))
        if is_normed:
            query, key = turned(attention.q_norm(query), own_turn), turned(attention.k_norm(key), turn)
        attended = self._attend(query, key, value, layout, **kwargs)
        return add_gated_mlp(add_projection(residual, attended, parts.output), parts.mlp)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: ForestLayout | CachedRows, **kwargs: Any
    ) -> Tensor:
        """Output (Q, heads * D) of attention, before its projection; from (Q or T, heads, D)."""
        attention = self.self_attn
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        options = {
            "dropout": attention.attention_dropout if self.training else 0.0,
            "scaling": attention.scaling,
            "sliding_window": _window(attention),
        }
        output, _ = forest_attention(attention, query, key, value, forest_layout=layout, **options, **kwargs)
        return output.squeeze(0).flatten(1)


_FUSED: dict[type, type] = {
    stock: type(stock.__name__, (_FusedLayer, stock), {"__module__": __name__})
    for stock in (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
}
"""Stock decoder layers and what takes their place. The name stays: sharding and device maps go by it."""


class _Parts(NamedTuple):
    """What a decoder layer computes with at one call."""

    input_norm: Norm
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    mlp_norm: Norm
    gate: Projection
    up: Projection
    down: Projection

    @property
    def mlp(self) -> GatedMlp:
        """Those of the second half."""
        return GatedMlp(self.mlp_norm, self.gate, self.up, self.down)


def _norm_of(module: nn.Module, dtype: torch.dtype) -> Norm | None:
    if not isinstance(module, LlamaRMSNorm | MistralRMSNorm | Qwen2RMSNorm | Qwen3RMSNorm):
        return None
    fits = module.weight.dtype == dtype and not module.weight.requires_grad
    return Norm(module.weight, module.variance_epsilon) if fits else None


def _window(attention: nn.Module) -> int | None:
    """The latest tokens that a query sees; None = all."""
    if isinstance(attention, MistralAttention):
        return attention.config.sliding_window
    return attention.sliding_window if isinstance(attention, Qwen2Attention | Qwen3Attention) else None
