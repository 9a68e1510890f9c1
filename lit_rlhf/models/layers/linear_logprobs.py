"""Hidden states to log-probabilities, without logits: the one primitive that every algorithm uses.

    z = transform(h W^T + b),   log p(y | h) = z_y - logsumexp(z)

is computed in tiles of rows and vocabulary, so that no (N, V) tensor ever exists, forward or backward. Sums over the
vocabulary are kept relative to the largest logit so far and shrink whenever that rises (online softmax, Milakov and
Gimelshein, arXiv 1805.02867). While W is frozen the gradient of each log-probability with respect to its hidden state,

    d log p(y | h) / d h = t_y (1 - p_y) W_y - sum over v != y of t_v p_v W_v,    t = transform'(z),

needs no knowledge of the loss: it is one more such sum, formed in the forward while a tile's logits are at hand, and
scaled by the incoming gradient in the backward. That is two matrix products where recomputing the logits takes three.
The target stays out of the sums, so that 1 - p_y keeps its digits where p_y is nearly 1. When W itself is trained, the
backward recomputes the tiles.

Shape letters: N scored tokens, H hidden size, V vocabulary; C rows and U columns of a tile.
"""

from __future__ import annotations

from itertools import product
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Logits of a tile on a CPU, whose cache they fit; times 4 bytes, a few times over, is the memory of the head."""

GPU_CHUNK_ELEMENTS = 1 << 26
"""The same on a GPU, which needs more to be busy."""


class LogitTransform(NamedTuple):
    """What a model does to its logits after ``lm_head``: ``softcap * tanh(scale * logits / softcap)``.

    Args:
        scale: factor on the logits (``logit_scale`` and its like).
        softcap: bound of the logits (``final_logit_softcapping``); 0 = none.
        temperature: the logits are divided by it last; 1 = the model as it is.
    """

    scale: float = 1.0
    softcap: float = 0.0
    temperature: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Transformed logits, float32, the same shape."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature if self.temperature != 1.0 else logits

    def chain(self, gradient: Tensor, transformed: Tensor) -> Tensor:
        """Gradient with respect to the raw logits from the one with respect to ``transformed`` ones. Works in place."""
        if self.softcap:
            gradient = gradient.mul_(1.0 - (transformed * (self.temperature / self.softcap)) ** 2)
        factor = self.scale / self.temperature
        return gradient.mul_(factor) if factor != 1.0 else gradient


class TokenLogprobs(NamedTuple):
    """Per scored token, float32.

    Args:
        logprobs: (N,) log-probability of the token that stands there, in nats. Carries the gradient.
        entropy: (N,) entropy of the distribution, in nats, detached; empty where not asked for.
        log_sum_squares: (N,) log of the sum of squared probabilities (the expected probability of a sample, which
            WPO divides by), detached; empty where not asked for.
    """

    logprobs: Tensor
    entropy: Tensor
    log_sum_squares: Tensor


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    transform: LogitTransform | None = None,
    with_entropy: bool = False,
    with_log_sum_squares: bool = False,
) -> TokenLogprobs:
    """Log-probabilities of ``targets`` under the language-model head.

    Args:
        hidden: (N, H) hidden states, one per scored token, of the token before it.
        weight: (V, H) ``lm_head`` weight.
        targets: (N,) int64 token ids.
        bias: (V,) of the head, if it has one.
        transform: what the model does to its logits besides.
        with_entropy: also return entropies.
        with_log_sum_squares: also return the logs of the sums of squared probabilities.

    Raises:
        ValueError: if the shapes do not belong together.

    Example:
        >>> out = linear_logprobs(torch.zeros(1, 3), torch.zeros(4, 3), torch.tensor([2]))
        >>> round(float(out.logprobs.exp()), 4)
        0.25
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} do not fit"
            " (N, H), (V, H) and (N,)"
        )
    transform = transform or LogitTransform()
    logprobs, entropy, log_sum_squares = _LinearLogprobs.apply(
        hidden, weight, bias, targets, transform, with_entropy, with_log_sum_squares
    )
    none = logprobs.new_empty(0)
    return TokenLogprobs(logprobs, entropy if with_entropy else none, log_sum_squares if with_log_sum_squares else none)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        with_entropy: bool,
        with_log_sum_squares: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        with_gradient = needs_hidden and not needs_weight
        unit_gradient = torch.empty_like(hidden) if with_gradient else hidden[:0]
        columns = torch.empty(4, hidden.shape[0], dtype=torch.float32, device=hidden.device)
        row_tiles, column_tiles = _tiles(hidden, weight)
        for rows in row_tiles:
            sums = _Sums(hidden[rows], targets[rows], transform, with_gradient, with_entropy, with_log_sum_squares)
            for part in column_tiles:
                sums.add(part, weight[part], None if bias is None else bias[part])
            columns[:, rows] = sums.columns()
            if with_gradient:
                unit_gradient[rows] = sums.unit_gradient(weight).to(hidden.dtype)
        logprobs, entropy, log_sum_squares, log_norm = columns.unbind()
        ctx.mark_non_differentiable(entropy, log_sum_squares)
        ctx.transform = transform
        if with_gradient:
            ctx.save_for_backward(unit_gradient)
        elif needs_weight:
            ctx.save_for_backward(hidden, weight, bias, targets, log_norm)
        return logprobs, entropy, log_sum_squares

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (unit_gradient,) = ctx.saved_tensors
            return (unit_gradient * gradient[:, None]).to(unit_gradient.dtype), None, None, None, None, None, None
        return (*_recomputed_gradients(ctx, gradient), None, None, None, None)


class _Sums:
    """Sums of exp(z - peak) over the vocabulary for C rows, tile by tile; peak is the largest logit so far.

    The sums leave the target of each row out; what is read of them puts it in.

    Args:
        hidden: (C, H).
        targets: (C,) int64.
        transform: of the logits.
        with_gradient: whether :meth:`unit_gradient` will be read.
        with_entropy: whether entropies will be read.
        with_log_sum_squares: whether logs of sums of squares will be.
    """

    def __init__(
        self,
        hidden: Tensor,
        targets: Tensor,
        transform: LogitTransform,
        with_gradient: bool,
        with_entropy: bool,
        with_log_sum_squares: bool,
    ) -> None:
        self.hidden, self.targets, self.transform = hidden, targets, transform
        self.with_entropy, self.with_log_sum_squares = with_entropy, with_log_sum_squares
        rows = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        self.peak, self.target = torch.full_like(rows, -torch.inf), rows
        self.others, self.energy, self.squares = rows.clone(), rows.clone(), rows.clone()
        self.pull = torch.zeros_like(hidden, dtype=torch.float32) if with_gradient else None

    def add(self, part: slice, weight: Tensor, bias: Tensor | None) -> None:
        """Add the words ``part``, whose rows of the head's weight (U, H) and bias (U,) are given."""
        logits = self.transform(_linear(self.hidden, weight, bias))
        index, inside = _inside(self.targets, part)
        self.target = torch.where(inside, logits.gather(1, index), self.target[:, None])[:, 0]
        peak = torch.maximum(self.peak, logits.amax(dim=-1))
        shrink, self.peak = torch.exp(self.peak - peak), peak
        terms = torch.exp(logits - peak[:, None])
        terms.scatter_(1, index, terms.gather(1, index).masked_fill_(inside, 0.0))
        self.others.mul_(shrink).add_(terms.sum(-1))
        if self.with_entropy:
            self.energy.mul_(shrink).add_(torch.linalg.vecdot(terms, logits))
        if self.with_log_sum_squares:
            self.squares.mul_(shrink**2).add_(torch.linalg.vecdot(terms, terms))
        if self.pull is not None:
            terms = self.transform.chain(terms, logits)
            self.pull.mul_(shrink[:, None]).add_(terms.to(weight.dtype) @ weight)

    def columns(self) -> Tensor:
        """(4, C) log-probability of the target, entropy, log of the sum of squared probabilities, log of the norm."""
        own = torch.exp(self.target - self.peak)
        total = self.others + own
        log_total = total.log()
        log_norm = self.peak + log_total
        entropy = log_norm - (self.energy + own * self.target) / total
        log_sum_squares = (self.squares + own**2).log() - 2.0 * log_total
        return torch.stack([self.target - self.peak - log_total, entropy, log_sum_squares, log_norm])

    def unit_gradient(self, weight: Tensor) -> Tensor:
        """(C, H) float32, gradient of the log-probability of the target with respect to the hidden state."""
        assert self.pull is not None
        total = self.others + torch.exp(self.target - self.peak)
        push = self.transform.chain(self.others / total, self.target)
        return push[:, None] * weight[self.targets] - self.pull / total[:, None]


def _recomputed_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weight and bias for a head that is trained."""
    hidden, weight, bias, targets, log_norm = ctx.saved_tensors
    wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
    weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
    bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
    row_tiles, column_tiles = _tiles(hidden, weight)
    for rows, part in product(row_tiles, column_tiles):
        logits = ctx.transform(_linear(hidden[rows], weight[part], None if bias is None else bias[part]))
        index, inside = _inside(targets[rows], part)
        unit = torch.exp(logits - log_norm[rows, None]).neg_().scatter_add_(1, index, inside.float())
        logit_gradient = ctx.transform.chain(unit, logits) * gradient[rows, None]
        if bias_gradient is not None:
            bias_gradient[part] += logit_gradient.sum(0)
        logit_gradient = logit_gradient.to(weight.dtype)
        if hidden_gradient is not None:
            hidden_gradient[rows] += logit_gradient @ weight[part]
        if weight_gradient is not None:
            weight_gradient[part] += logit_gradient.T @ hidden[rows].to(weight.dtype)
    return (
        None if hidden_gradient is None else hidden_gradient.to(hidden.dtype),
        None if weight_gradient is None else weight_gradient.to(weight.dtype),
        None if bias_gradient is None else bias_gradient.to(bias.dtype),
    )


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias)


def _inside(targets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Index (C, 1) int64 of each target within a tile of the vocabulary, and whether (C, 1) bool it lies there."""
    inside = (targets >= part.start) & (targets < part.stop)
    return (targets - part.start).clamp(0, part.stop - part.start - 1)[:, None], inside[:, None]


def _tiles(hidden: Tensor, weight: Tensor) -> tuple[list[slice], list[slice]]:
    """Ranges of rows and of the vocabulary; a tile is about four times as wide as it is high, unless V is less."""
    elements = GPU_CHUNK_ELEMENTS if hidden.is_cuda else CHUNK_ELEMENTS
    width = min(weight.shape[0], 2 * isqrt(elements), elements)
    return _slices(hidden.shape[0], max(1, elements // width)), _slices(weight.shape[0], width)


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
