"""Attention over a forest on a CPU, run by run, as one step of autograd.

Calling scaled_dot_product_attention once per run would keep each run's output, keys and values beside the whole row's,
and its backward pass would fill a tensor of the row's size with zeros for every run. Here all runs write into one
output, and into one gradient each of queries, keys and values. Kept are these four, and of short runs their softmax
weights (:mod:`lit_rlhf.models.layers.causal_blocks`), of others one number per query and head. The keys of a run that
does not begin at a root are joined again in the backward pass.

The kernel of longer runs, and of those with a window, is the one that scaled_dot_product_attention itself uses on a
CPU. Query heads that share keys are laid out as a batch over the same keys, so that nothing is repeated in memory.

Shape letters: Q queries, T keys, D head dimension; q queries and k keys of one run; J key-value heads, G query heads
on each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.layers.causal_blocks import attend_causally, attend_causally_backward, is_short

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
        masks: of each run, an additive mask (q, k), or None = a query sees all keys up to its own, which is the last
            of the run for the last query. A run that is not short has a mask where it has more keys than queries.
        scaling: of the scores; 1 / sqrt(D) where None.

    Returns:
        (1, Q, J * G, D), contiguous.
    """
    return _RunAttention.apply(query, key, value, runs, masks, query.shape[-1] ** -0.5 if scaling is None else scaling)


class _RunAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        runs: Sequence[tuple[int, int, Spans]],
        masks: Sequence[Tensor | None],
        scaling: float,
    ) -> Tensor:
        output, groups = _empty(query), query.shape[1] // key.shape[1]
        is_kept = any(ctx.needs_input_grad)
        kept: list[list[Tensor]] = []
        for (start, end, spans), mask in zip(runs, masks, strict=True):
            own, keys, values = query[:, :, start:end], _joined(key, spans), _joined(value, spans)
            if _is_in_blocks(keys, mask):
                place = _by_keys(output[:, :, start:end], groups)
                found = attend_causally(_by_keys(own, groups), keys[0], values[0], scaling, place)
            else:
                inputs = (_grouped(own, groups), keys.expand(groups, -1, -1, -1), values.expand(groups, -1, -1, -1))
                attended, norm = _FORWARD(*inputs, is_causal=mask is None, attn_mask=mask, scale=scaling)
                _grouped(output[:, :, start:end], groups).copy_(attended)
                found = [norm]
            kept.append(found if is_kept else [])
        ctx.runs, ctx.masks, ctx.scaling = runs, masks, scaling
        ctx.num_kept = [len(found) for found in kept]
        ctx.save_for_backward(query, key, value, output, *chain.from_iterable(kept))
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *kept = ctx.saved_tensors
        gradient, saved = gradient.transpose(1, 2), iter(kept)
        groups = query.shape[1] // key.shape[1]
        for_query, for_key, for_value = _empty(query), _empty(key).zero_(), _empty(value).zero_()
        for (start, end, spans), mask, count in zip(ctx.runs, ctx.masks, ctx.num_kept, strict=True):
            rows = [x[:, :, start:end] for x in (gradient, query, output, for_query)]
            keys, values = _joined(key, spans), _joined(value, spans)
            alone = len(spans) == 1
            totals = [_joined(x, spans) if alone else torch.zeros_like(keys) for x in (for_key, for_value)]
            found = list(islice(saved, count))
            if _is_in_blocks(keys, mask):
                own_gradient, own, own_output, for_own = (_by_keys(x, groups) for x in rows)
                inputs, sums = (own, keys[0], values[0]), (for_own, totals[0][0], totals[1][0])
                attend_causally_backward(own_gradient, inputs, ctx.scaling, own_output, found, sums)
            else:
                _kernel_backward(rows, keys, values, groups, found[0], mask, ctx.scaling, totals)
            if not alone:
                _spread(for_key, spans, totals[0])
                _spread(for_value, spans, totals[1])
        return for_query, for_key, for_value, None, None, None


def _is_in_blocks(keys: Tensor, mask: Tensor | None) -> bool:
    """Whether a run with these keys (1, J, k, D) is computed block by block."""
    return mask is None and is_short(keys.shape[2], keys.dtype)


def _kernel_backward(
    rows: Sequence[Tensor],
    keys: Tensor,
    values: Tensor,
    groups: int,
    norm: Tensor,
    mask: Tensor | None,
    scaling: float,
    totals: Sequence[Tensor],
) -> None:
    """The kernel's gradients of one run.

    Args:
        rows: (1, J * G, q, D), of the run: the output's gradient, queries, output, and the queries' gradient, written.
        keys: (1, J, k, D).
        values: the same shape.
        groups: G.
        norm: of each query, as the kernel gave it.
        mask: of the run.
        scaling: of the scores.
        totals: gradients of keys and values, which are added to.
    """
    gradient, query, output, for_query = (_grouped(x, groups) for x in rows)
    wide = keys.expand(groups, -1, -1, -1), values.expand(groups, -1, -1, -1)
    found = _BACKWARD(gradient, query, *wide, output, norm, 0.0, mask is None, attn_mask=mask, scale=scaling)
    for_query.copy_(found[0])
    for total, one in zip(totals, found[1:], strict=True):
        total.add_(one.sum(0, keepdim=True) if groups > 1 else one)


def _empty(like: Tensor) -> Tensor:
    """(1, heads, tokens, D), laid out token by token, as the linear layers around attention want it."""
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _by_keys(x: Tensor, groups: int) -> Tensor:
    """A view (J, G, q, D) of (1, J * G, q, D)."""
    return x[0].unflatten(0, (-1, groups))


def _grouped(x: Tensor, groups: int) -> Tensor:
    """A view (G, J, q, D) of (1, J * G, q, D)."""
    return _by_keys(x, groups).transpose(0, 1)


def _joined(x: Tensor, spans: Spans) -> Tensor:
    """(1, J, k, D): the keys of a run out of (1, J, T, D); a view where they stand together."""
    pieces = [x[:, :, start:end] for start, end in spans]
    return torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0]


def _spread(total: Tensor, spans: Spans, gradient: Tensor) -> None:
    """Add the gradient (1, J, k, D) of joined keys to that of all keys (1, J, T, D)."""
    sizes = [end - start for start, end in spans]
    for (start, end), piece in zip(spans, gradient.split(sizes, dim=2), strict=True):
        total[:, :, start:end] += piece
