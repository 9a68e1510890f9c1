"""Bytes that decoder layers of the Llama type keep and need in passing, where our own functions compute them.

Each formula counts what :mod:`lit_rlhf.models.layers.fused_functions` keeps, tensor by tensor; docs/estimate.md derives
them.

Shape letters: T tokens of a forward pass, N of them whose hidden states are read, H hidden size, Q numbers of all query
heads, K of all key heads, I MLP width, L layers; a bytes of a number.
"""

from __future__ import annotations

from typing import NamedTuple


class Widths(NamedTuple):
    """Numbers per token inside of a decoder.

    Args:
        hidden: H.
        query: Q.
        key: K.
        mlp: I.
        heads: query heads.
        layers: L.
        number_bytes: a.
        is_normed: whether queries and keys of each head are normed (Qwen3).
        on_gpu: the attention of a GPU keeps its own output, and the keys of a prompt for each response but the first;
            counted is one such response.
        portion: part of the tokens that is computed at a time.
        seen: softmax weights of a query and head that are kept; 0 = one number in their place.
    """

    hidden: int
    query: int
    key: int
    mlp: int
    heads: int
    layers: int
    number_bytes: int
    is_normed: bool = False
    on_gpu: bool = False
    portion: float = 1.0
    seen: float = 0.0


def kept_by_rows(w: Widths) -> int:
    """Bytes per token for which the layer computes a query: all but input, keys and values."""
    attention = w.query + w.query  # the rotated queries, and the output
    copies = (w.query + 2 * w.key) if w.on_gpu else 0  # varlen: its own output, and keys of a prompt once more
    norms = (w.query + w.key) * 4 if w.is_normed else 0
    numbers = attention + copies + w.hidden + 2 * w.mlp
    per_head = round(w.number_bytes * w.seen) if w.seen else 4
    return w.number_bytes * numbers + norms + per_head * w.heads + 4


def kept_by_keys(w: Widths) -> int:
    """Bytes per token, read or not: the layer's input with its norm, keys and values."""
    return w.number_bytes * (w.hidden + 2 * w.key) + 4


def kept_per_token(w: Widths) -> int:
    """Bytes that a layer keeps of each token for the backward pass."""
    return kept_by_rows(w) + kept_by_keys(w)


def backward_mlp(w: Widths) -> int:
    """Bytes per token in passing, in the backward pass of the gated MLP: what comes in, what goes out, and between."""
    wide = 3 * w.mlp * w.number_bytes
    # Behind it the norm, in float32: the gradient, its product with the input, and the input again where it is shorter.
    norm = 2 * w.mlp * w.number_bytes + (8 + 4 * (w.number_bytes < 4)) * w.hidden + w.number_bytes * w.hidden
    return round(w.portion * max(wide, norm)) + 2 * w.number_bytes * w.hidden


def forward_pass(w: Widths) -> int:
    """Bytes per token of a layer whose forward pass no backward pass follows."""
    attention = w.hidden + 2 * w.query + 2 * w.key
    return w.number_bytes * (w.hidden + max(w.hidden + round(w.portion * 3 * w.mlp), attention))
