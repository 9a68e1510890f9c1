"""Causal attention of one short run by products of matrices, block of queries by block of queries, on a CPU.

The queries are the latest tokens of a run, and each sees all keys up to its own. A block of them is multiplied with the
keys that its last one sees; of what the others do not see, only the block's own corner is computed in vain. The softmax
weights are kept, so that the backward pass computes no scores again. That takes less time than the kernel of
scaled_dot_product_attention (``benchmarks/cpu_kernels.py``), and memory that grows with the square of a run's length:
at ``MOST_KEYS``, a third of what a decoder layer keeps besides.

Shape letters: J key-value heads, G query heads on each, q queries, k keys, D head dimension; m queries of a block, n
keys that its last one sees.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

MOST_KEYS = 512
"""Of a run that is computed so; the weights of a longer one would take more memory than they are worth."""
_BLOCK = 64
"""Queries of a block, about."""


def is_short(num_keys: int, dtype: torch.dtype) -> bool:
    """Whether a run with so many keys is computed so. Half precision is not: its softmax needs float32 inside."""
    return num_keys <= MOST_KEYS and dtype in (torch.float32, torch.float64)


def num_weights(num_queries: int, num_keys: int) -> int:
    """Softmax weights of one head that are kept."""
    return sum((end - start) * seen for start, end, seen in _blocks(num_queries, num_keys))


def attend_causally(query: Tensor, key: Tensor, value: Tensor, scaling: float, output: Tensor) -> list[Tensor]:
    """Attention of a run.

    Args:
        query: (J, G, q, D), of the latest tokens.
        key: (J, k, D).
        value: the same shape.
        scaling: of the scores.
        output: (J, G, q, D), written.

    Returns:
        The softmax weights (J, G * m, n) of every block.
    """
    groups, kept = query.shape[1], []
    for start, end, seen in _blocks(query.shape[2], key.shape[1]):
        scores = torch.bmm(_flat(query[:, :, start:end] * scaling), key[:, :seen].transpose(1, 2))
        _hide_what_comes_later(scores, groups, end - start)
        weights = torch.softmax(scores, dim=-1)
        output[:, :, start:end] = torch.bmm(weights, value[:, :seen]).unflatten(1, (groups, -1))
        kept.append(weights)
    return kept


def attend_causally_backward(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    scaling: float,
    output: Tensor,
    weights: list[Tensor],
    totals: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Gradients of :func:`attend_causally`.

    Args:
        gradient: (J, G, q, D), of the output.
        inputs: query, key and value.
        scaling: of the scores.
        output: (J, G, q, D).
        weights: of every block.
        totals: gradients of query, which is written, and of key and value, which are added to.
    """
    (query, key, value), (for_query, for_key, for_value) = inputs, totals
    groups = query.shape[1]
    # What a query's weights have in common: the sum of each times its gradient.
    along = torch.linalg.vecdot(gradient, output)[..., None]
    for (start, end, seen), block in zip(_blocks(query.shape[2], key.shape[1]), weights, strict=True):
        own = _flat(gradient[:, :, start:end])
        for_value[:, :seen].baddbmm_(block.transpose(1, 2), own)
        for_scores = torch.bmm(own, value[:, :seen].transpose(1, 2))
        for_scores.sub_(_flat(along[:, :, start:end])).mul_(block)
        for_key[:, :seen].baddbmm_(for_scores.transpose(1, 2), _flat(query[:, :, start:end]), alpha=scaling)
        for_query[:, :, start:end] = torch.bmm(for_scores, key[:, :seen]).mul_(scaling).unflatten(1, (groups, -1))


def _blocks(num_queries: int, num_keys: int) -> list[tuple[int, int, int]]:
    """First query of each block, the one after its last, and how many keys that last one sees."""
    count, before = max(1, round(num_queries / _BLOCK)), num_keys - num_queries
    ends = [num_queries * number // count for number in range(count + 1)]
    return [(start, end, before + end) for start, end in pairwise(ends)]


def _flat(x: Tensor) -> Tensor:
    """(J, G * m, N) of (J, G, m, N)."""
    return x.flatten(1, 2)


def _hide_what_comes_later(scores: Tensor, groups: int, num_queries: int) -> None:
    """Scores (J, G * m, n) of keys behind a query become -inf; only the last m keys can be."""
    corner = scores.unflatten(1, (groups, -1))[..., -num_queries:]
    corner += torch.full((num_queries, num_queries), -torch.inf, dtype=scores.dtype).triu_(1)
