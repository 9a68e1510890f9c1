"""Attention over a forest on a CPU, run by run, as one step of autograd.

Calling scaled_dot_product_attention once per run would keep each run's output, keys and values beside the whole row's,
and its backward pass would fill a tensor of the row's size with zeros for every run. Here all runs write into one
output, and into one gradient each of queries, keys and values; kept are these four and one number per query and head.
The keys of a run that does not begin at a root are joined again in the backward pass.

The kernel is the one that scaled_dot_product_attention itself uses on a CPU. Query heads that share keys are laid out
as a batch over the same keys, so that nothing is repeated in memory.

Shape letters: Q queries, T keys, D head dimension; q queries and k keys of one run; J key-value heads, G query heads
on each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Spans = Sequence[tuple[int, int]]


def attend_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: Sequence[tuple[int, int, Spans]],
    masks: Sequence[Tensor | None],
    scaling: float | None = None,
) -> Tensor:
    """Softmax attention of each run over its own keys. On a CPU only.

    Args:
        query: (1, J * G, Q, D).
        key: (1, J, T, D).
        value: the same shape.
        runs: of each run, the first query, the query after its last, and the (start, end) ranges of its keys. Together
            they cover all queries.
        masks: of each run, an additive mask (q, k), or None = plain causal.
        scaling: of the scores; 1 / sqrt(D) where None.

    Returns:
        (1, Q, J * G, D), contiguous.
    """
    return _RunAttention.apply(query, key, value, runs, masks, scaling)


class _RunAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        runs: Sequence[tuple[int, int, Spans]],
        masks: Sequence[Tensor | None],
        scaling: float | None,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        output = _empty(query)
        norms = []
        for (start, end, spans), mask in zip(runs, masks, strict=True):
            attended, norm = _FORWARD(
                _grouped(query[:, :, start:end], groups),
                _joined(key, spans, groups),
                _joined(value, spans, groups),
                is_causal=mask is None,
                attn_mask=mask,
                scale=scaling,
            )
            _grouped(output[:, :, start:end], groups).copy_(attended)
            norms.append(norm)
        ctx.runs, ctx.masks, ctx.scaling = runs, masks, scaling
        ctx.save_for_backward(query, key, value, output, *norms)
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *norms = ctx.saved_tensors
        gradient = gradient.transpose(1, 2)
        groups = query.shape[1] // key.shape[1]
        query_gradient, key_gradient, value_gradient = _empty(query), _empty(key).zero_(), _empty(value).zero_()
        for (start, end, spans), mask, norm in zip(ctx.runs, ctx.masks, norms, strict=True):
            for_query, for_key, for_value = _BACKWARD(
                _grouped(gradient[:, :, start:end], groups),
                _grouped(query[:, :, start:end], groups),
                _joined(key, spans, groups),
                _joined(value, spans, groups),
                _grouped(output[:, :, start:end], groups),
                norm,
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scaling,
            )
            _grouped(query_gradient[:, :, start:end], groups).copy_(for_query)
            _add(key_gradient, spans, for_key)
            _add(value_gradient, spans, for_value)
        return query_gradient, key_gradient, value_gradient, None, None, None


def _empty(like: Tensor) -> Tensor:
    """(1, heads, tokens, D), laid out token by token, as the linear layers around attention want it."""
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """A view (G, J, q, D) of (1, J * G, q, D)."""
    return x[0].unflatten(0, (-1, groups)).transpose(0, 1)


def _joined(x: Tensor, spans: Spans, groups: int) -> Tensor:
    """(G, J, k, D): the keys of a run out of (1, J, T, D), the same for each of the groups."""
    pieces = [x[:, :, start:end] for start, end in spans]
    return (torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0]).expand(groups, -1, -1, -1)


def _add(total: Tensor, spans: Spans, gradient: Tensor) -> None:
    """Add the gradient (G, J, k, D) of joined keys to that of all keys (1, J, T, D)."""
    sizes = [end - start for start, end in spans]
    gradient = gradient.sum(0, keepdim=True) if len(gradient) > 1 else gradient
    for (start, end), piece in zip(spans, gradient.split(sizes, dim=2), strict=True):
        total[:, :, start:end] += piece
