"""Bytes of one forward pass and its backward pass: decoder layers, the head, and what is kept between.

Shape letters: T tokens of a pass, N of them whose hidden states are read, H hidden size, V vocabulary, L layers; a
bytes of a number.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import nn

from lit_rlhf.estimating import fused_layers
from lit_rlhf.estimating.anatomy import Anatomy, blank_model, decoder_layers
from lit_rlhf.estimating.fused_layers import Widths
from lit_rlhf.estimating.run import Run
from lit_rlhf.estimating.tracing import Traced, trace_layers
from lit_rlhf.models import adapters
from lit_rlhf.models.layers.causal_blocks import is_short, num_weights
from lit_rlhf.models.layers.linear_logprobs import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS
from lit_rlhf.models.layers.products import PORTION
from lit_rlhf.models.loading import OWN_ATTENTION, switch_dropout_off
from lit_rlhf.types import Forest, Segment

TILES = 4
"""Float32 tensors of a tile of logits that are alive at once: logits, depths, terms, and their product."""


MOST_TRACED = 4096
"""Tokens of a row that is traced; of longer passes, weights in passing are a small part."""


class LayerCosts(NamedTuple):
    """Bytes per token of decoder layers.

    Args:
        kept: by each layer for the backward pass.
        last_all: by the last layer, for every token.
        last_read: by the last layer, for a token that is read.
        around: beside the layers, for every token.
        around_read: beside them, for a token that is read.
        forward: in passing, in a layer's forward pass.
        backward: in passing, in its backward pass.
        is_trimmed: whether the last layer computes no more than what is read.
        origin: where the numbers come from: ``formula``, ``counted`` or ``rough``.
    """

    kept: float
    last_all: float
    last_read: float
    around: float
    around_read: float
    forward: float
    backward: float
    is_trimmed: bool
    origin: str


class Pass(NamedTuple):
    """Bytes of a forward pass that a backward pass follows.

    Args:
        kept: when the forward pass is over, the head's included.
        peak: most of them, beside weights and gradients.
        without_graph: most of them where no backward pass follows.
    """

    kept: float
    peak: float
    without_graph: float


def training_pass(run: Run, found: Anatomy, costs: LayerCosts, *, has_head: bool = True) -> Pass:
    """Bytes of the largest pass of a run.

    Args:
        run: the run.
        found: its model.
        costs: of its layers.
        has_head: whether hidden states become log-probabilities; a score or a value is next to nothing.
    """
    tokens, scored, size, hidden = run.pass_tokens, run.pass_scored, found.dtype.itemsize, found.hidden
    layers = len(found.layers)
    inner = (layers - 1) * costs.kept * tokens + costs.around * tokens
    kept = inner + costs.last_all * tokens + (costs.last_read + costs.around_read) * scored
    read = scored if costs.is_trimmed else tokens
    unit = scored * hidden * size if has_head and not is_head_trained(run) else 0
    tile = _tile(run, found, scored, with_gradient=True) if has_head else 0
    trained_head = 4 * (found.num_head + scored * hidden) if has_head and is_head_trained(run) else 0
    states = scored * hidden * size
    weights = _weights_in_passing(run, found)
    peak = max(
        kept + states + unit + tile + trained_head,
        kept + unit + costs.backward * read + weights,
        inner + costs.backward * tokens + weights,
    )
    plain = max(costs.forward * tokens + weights, 2 * states) + costs.around * tokens + 2 * tokens * hidden * size
    alone = states + (_tile(run, found, scored, with_gradient=False) if has_head else 0)
    return Pass(kept + unit, peak, max(plain, alone))


def is_head_trained(run: Run) -> bool:
    """Whether ``lm_head`` learns, so that its gradient is formed from logits that are computed again."""
    return not run.backbone.lora.enabled or "lm_head" in run.backbone.lora.modules_to_save


def layer_costs(run: Run, found: Anatomy) -> LayerCosts:
    """What the decoder layers of a run keep: by formula where this package computes them, else counted."""
    if is_fused(run, found):
        return _of_formula(run, found)
    return _of_trace(run, found)


def is_fused(run: Run, found: Anatomy) -> bool:
    """Whether this package's own functions compute the layers; each condition is one of those that they look at."""
    backbone, lora = run.backbone, run.backbone.lora
    is_plain = lora.enabled and not lora.use_dora and lora.dropout == 0.0 and backbone.quantization != "int8"
    return found.is_fused and backbone.fused and is_plain and is_forest(run, found) and not run.is_autocast


def is_forest(run: Run, found: Anatomy) -> bool:
    """Whether what responses share is computed once. Training finds out by a probe; this looks at the model's kind."""
    return run.backbone.attention in OWN_ATTENTION and found.model._can_set_attn_implementation()


def widths(run: Run, found: Anatomy) -> Widths:
    """Numbers per token inside of a fused decoder."""
    layer: Any = found.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    return Widths(
        hidden=found.hidden,
        query=attention.q_proj.out_features,
        key=attention.k_proj.out_features,
        mlp=mlp.gate_proj.out_features,
        heads=attention.q_proj.out_features // attention.head_dim,
        layers=len(found.layers),
        number_bytes=found.dtype.itemsize,
        is_normed=any(name == "q_norm" for name, _ in attention.named_children()),
        on_gpu=run.device == "cuda",
        portion=1.0 if run.device == "cuda" else min(1.0, PORTION / max(1, run.pass_tokens)),
        seen=_seen(run, found),
    )


def _seen(run: Run, found: Anatomy, *, by_responses: bool = False) -> float:
    """Softmax weights that a query keeps on average: of all tokens, or of those of responses alone."""
    prompt, response, count = run.texts
    first = prompt + response
    if run.device == "cuda" or not is_short(first, found.dtype):
        return 0.0
    behind = num_weights(response, first)
    if by_responses:
        return behind / max(1, response)
    return (num_weights(first, first) + (count - 1) * behind) / max(1, run.texts.tree)


def _of_formula(run: Run, found: Anatomy) -> LayerCosts:
    w = widths(run, found)
    size, angles = w.number_bytes, 2 * w.number_bytes * w.query // w.heads
    kept, backward = float(fused_layers.kept_per_token(w)), float(fused_layers.backward_mlp(w))
    last_all = fused_layers.kept_by_keys(w)
    last_read = fused_layers.kept_by_rows(w._replace(seen=_seen(run, found, by_responses=True))) + 4 + size * w.hidden
    if run.backbone.gradient_checkpointing:
        backward += kept - size * w.hidden
        kept, last_all, last_read = (size * w.hidden,) * 2 + (0,)
    return LayerCosts(
        kept=kept,
        last_all=last_all,
        last_read=last_read,
        around=angles,
        around_read=angles + 4 * w.hidden,
        forward=fused_layers.forward_pass(w),
        backward=backward,
        is_trimmed=True,
        origin="formula",
    )


def _of_trace(run: Run, found: Anatomy) -> LayerCosts:
    backbone, forest = run.backbone, _row(run)
    key = (repr(found.model.config.to_dict()), found.dtype, repr(backbone.lora), backbone.gradient_checkpointing)
    traced, origin = _TRACES.get((*key, forest.lengths, run.is_autocast)), "counted"
    if traced is None:
        traced = _traced(run, found, found.dtype, forest)
        if traced is None and found.dtype == torch.float32:  # kernels of experts that know half precision alone
            half = _traced(run, found, torch.bfloat16, forest)
            traced = None if half is None else Traced(*(2.0 * part for part in half))
            origin = "rough"
        _TRACES[*key, forest.lengths, run.is_autocast] = traced
    if traced is None:
        traced, origin = _rough(run, found), "rough"
    return LayerCosts(
        kept=traced.kept,
        last_all=traced.kept,
        last_read=0.0,
        around=traced.around,
        around_read=0.0,
        forward=traced.forward,
        backward=traced.backward,
        is_trimmed=False,
        origin=origin,
    )


def _row(run: Run) -> Forest:
    """A row like those of a pass."""
    texts = run.texts
    prompt = Segment([0] * max(1, texts.prompt), [False] * max(1, texts.prompt))
    response = Segment([0] * texts.response, [True] * texts.response, 0)
    tree = [prompt, *[response] * texts.per_prompt]
    return Forest.pack([tree] * max(1, min(run.pass_tokens, MOST_TRACED) // texts.tree))


_TRACES: dict[tuple[object, ...], Traced | None] = {}


def _traced(run: Run, found: Anatomy, dtype: torch.dtype, forest: Forest) -> Traced | None:
    def make() -> nn.Module:
        model = blank_model(found.model.config, dtype)
        switch_dropout_off(model)  # as it is loaded
        model.requires_grad_(not run.backbone.lora.enabled)
        if run.backbone.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if not run.backbone.lora.enabled:
            return model.train()
        with torch.device("meta"):
            return adapters.new_adapter(model, run.backbone.lora).train()

    return trace_layers(make, decoder_layers, forest, is_autocast=run.is_autocast)


def _rough(run: Run, found: Anatomy) -> Traced:
    """Where nothing can be counted: each matrix that a token passes keeps what goes in and what comes out."""
    size = found.dtype.itemsize
    matrices = [p for p in found.layers[-1].parameters() if p.ndim > 1]
    used = [max(1, round(found.expert_share * len(p))) if p.ndim == 3 else 1 for p in matrices]
    sides = [count * sum(p.shape[-2:]) * size for p, count in zip(matrices, used, strict=True)]
    kept = float(sum(sides)) + 4 * found.hidden * size
    hidden = float(found.hidden * size)
    if run.backbone.gradient_checkpointing:
        return Traced(hidden, hidden, kept, 1.5 * kept)
    return Traced(kept, hidden, 2.0 * max(sides), 3.0 * max(sides))


def _tile(run: Run, found: Anatomy, scored: int, *, with_gradient: bool) -> int:
    """Bytes of the head in passing: a tile of logits a few times over, and two sums of its rows."""
    elements = GPU_CHUNK_ELEMENTS if run.device == "cuda" else CHUNK_ELEMENTS
    width = min(found.vocabulary, 2 * isqrt(elements), elements)
    rows = min(scored, max(1, elements // width))
    return TILES * 4 * rows * width + (2 * 4 * rows * found.hidden if with_gradient else 0)


@lru_cache(maxsize=8)
def _largest(model: nn.Module) -> int:
    return max(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))


def _weights_in_passing(run: Run, found: Anatomy) -> int:
    """Copies of weights that are made for a product: out of 4 or 8 bits, or with an adapter folded in (float32)."""
    is_folded = is_fused(run, found) and found.dtype == torch.float32
    if run.backbone.quantization == "none" and not is_folded:
        return 0
    # The MLP of a CPU, which goes through portions of the tokens, makes its three weights once for all of them.
    return (2 if run.device == "cuda" else 3) * _largest(found.layers) * found.dtype.itemsize
