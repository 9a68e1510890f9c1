"""Hidden states to log-probabilities, without logits: the one primitive that every algorithm uses.

    z = transform(h W^T + b),   log p(y | h) = z_y - logsumexp(z)

is computed in tiles of rows and vocabulary, so that no (N, V) tensor ever exists, forward or backward. Sums over the
vocabulary are kept relative to the largest logit so far and shrink whenever that rises (online softmax, Milakov and
Gimelshein, arXiv 1805.02867). While W is frozen the gradient of each log-probability with respect to its hidden state,

    d log p(y | h) / d h = t_y (1 - p_y) W_y - sum over v != y of t_v p_v W_v,    t = transform'(z),

needs no knowledge of the loss: it is one more such sum, formed in the forward while a tile's logits are at hand, and
scaled by the incoming gradient in the backward. That is two matrix products where recomputing the logits takes three.
The target stays out of the sums, so that 1 - p_y keeps its digits where p_y is nearly 1. The entropy's gradient,

    d entropy / d h = - sum over v of p_v (z_v - E[z]) t_v W_v,

is one sum more, asked for where the entropy is part of a loss. When W itself is trained, the backward recomputes the
tiles.

Shape letters: N scored tokens, H hidden size, V vocabulary; C rows and U columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        entropy: (N,) entropy of the distribution, in nats; detached unless its gradient was asked for; empty where not
            asked for at all.
        log_sum_squares: (N,) log of the sum of squared probabilities (the expected probability of a sample, which
            WPO divides by), detached; empty where not asked for.
        is_likeliest: (N,) bool, True = no other word has a larger logit.
        leads: (N,) logit of the token minus the mean of all logits, which label smoothing needs. Carries the gradient;
            empty where not asked for.
    """

    logprobs: Tensor
    entropy: Tensor
    log_sum_squares: Tensor
    is_likeliest: Tensor
    leads: Tensor


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    transform: LogitTransform | None = None,
    with_entropy: bool = False,
    with_log_sum_squares: bool = False,
    with_leads: bool = False,
    entropy_gradient: bool = False,
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
        with_leads: also return by how much each token's logit exceeds the mean of all.
        entropy_gradient: also return entropies, which carry their gradient, as an entropy bonus needs them.

    Raises:
        ValueError: if the shapes do not belong together, or leads are asked of logits with a softcap.

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
    with_entropy = with_entropy or entropy_gradient
    asked = _Asked(transform or LogitTransform(), with_entropy, with_log_sum_squares, entropy_gradient)
    logprobs, entropy, log_sum_squares, is_likeliest = _LinearLogprobs.apply(hidden, weight, bias, targets, asked)
    none = logprobs.new_empty(0)
    return TokenLogprobs(
        logprobs,
        entropy if with_entropy else none,
        log_sum_squares if with_log_sum_squares else none,
        is_likeliest.bool(),
        _leads(hidden, weight, targets, bias, asked.transform) if with_leads else none,
    )


def _leads(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """(N,) logit of each target minus the mean of all V logits, which is the logit of the mean row of the head."""
    if transform.softcap:
        raise ValueError("label smoothing needs the mean of the logits, which a model with a softcap does not give")
    rows = weight[targets].float() - weight.mean(0, dtype=torch.float32)
    leads = torch.linalg.vecdot(hidden.float(), rows)
    if bias is not None:
        leads = leads + bias[targets].float() - bias.float().mean()
    return leads * (transform.scale / transform.temperature)


class _Asked(NamedTuple):
    """What a call asked for: the transform of the logits, and which numbers besides the log-probabilities."""

    transform: LogitTransform
    entropy: bool
    log_sum_squares: bool
    entropy_gradient: bool


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, asked: _Asked
    ) -> tuple[Tensor, ...]:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        num_gradients = (1 + asked.entropy_gradient) if needs_hidden and not needs_weight else 0
        unit_gradients = [torch.empty_like(hidden) for _ in range(num_gradients)]
        columns = torch.empty(5, hidden.shape[0], dtype=torch.float32, device=hidden.device)
        row_tiles, column_tiles = _tiles(hidden, weight)
        for rows in row_tiles:
            sums = _Sums(hidden[rows], targets[rows], asked, num_gradients)
            for part in column_tiles:
                sums.add(part, weight[part], None if bias is None else bias[part])
            columns[:, rows] = sums.columns()
            for unit_gradient, gradient in zip(unit_gradients, sums.unit_gradients(weight), strict=True):
                unit_gradient[rows] = gradient.to(hidden.dtype)
        logprobs, entropy, log_sum_squares, log_norm, is_likeliest = columns.unbind()
        ctx.mark_non_differentiable(*([] if asked.entropy_gradient else [entropy]), log_sum_squares, is_likeliest)
        ctx.asked, ctx.is_head_trained = asked, needs_weight
        if needs_weight:
            ctx.save_for_backward(hidden, weight, bias, targets, log_norm, entropy)
        else:
            ctx.save_for_backward(*unit_gradients)
        return logprobs, entropy, log_sum_squares, is_likeliest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.is_head_trained:
            return (*_recomputed_gradients(ctx, *gradients[:2]), None, None)
        parts = [unit * gradient[:, None] for unit, gradient in zip(ctx.saved_tensors, gradients, strict=False)]
        return (sum(parts[1:], parts[0]).to(ctx.saved_tensors[0].dtype), None, None, None, None)


class _Sums:
    """Sums of exp(z - peak) over the vocabulary for C rows, tile by tile; peak is the largest logit so far.

    The sums leave the target of each row out; what is read of them puts it in.

    Args:
        hidden: (C, H).
        targets: (C,) int64.
        asked: what will be read.
        num_gradients: how many :meth:`unit_gradients` will be read: none, the log-probability's, the entropy's too.
    """

    def __init__(self, hidden: Tensor, targets: Tensor, asked: _Asked, num_gradients: int) -> None:
        self.hidden, self.targets, self.asked = hidden, targets, asked
        rows = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        # The lowest number and not -inf, which times a sum of 0 would be NaN.
        self.peak, self.target = torch.full_like(rows, torch.finfo(torch.float32).min), rows
        self.others, self.energy, self.squares = rows.clone(), rows.clone(), rows.clone()
        self.pulls = [torch.zeros_like(hidden, dtype=torch.float32) for _ in range(num_gradients)]

    def add(self, part: slice, weight: Tensor, bias: Tensor | None) -> None:
        """Add the words ``part``, whose rows of the head's weight (U, H) and bias (U,) are given."""
        logits = self.asked.transform(_linear(self.hidden, weight, bias))
        index, inside = _inside(self.targets, part)
        self.target = torch.where(inside, logits.gather(1, index), self.target[:, None])[:, 0]
        peak = torch.maximum(self.peak, logits.amax(dim=-1))
        drop, self.peak = self.peak - peak, peak
        shrink = torch.exp(drop)
        depths = logits - peak[:, None]
        terms = torch.exp(depths)
        terms.scatter_(1, index, terms.gather(1, index).masked_fill_(inside, 0.0))
        if self.asked.entropy:  # depths are measured from the peak, so those of earlier tiles grow as it rises
            self.energy.add_(drop * self.others).mul_(shrink).add_(torch.linalg.vecdot(terms, depths))
        self.others.mul_(shrink).add_(terms.sum(-1))
        if self.asked.log_sum_squares:
            self.squares.mul_(shrink**2).add_(torch.linalg.vecdot(terms, terms))
        if self.pulls:
            self._pull(self.asked.transform.chain(terms, logits), depths, drop, weight)

    def _pull(self, terms: Tensor, depths: Tensor, drop: Tensor, weight: Tensor) -> None:
        """Add to the sums over rows of the weight that gradients are made of. Overwrites ``depths``."""
        drop, shrink = drop[:, None], torch.exp(drop)[:, None]
        pull, *energy_pulls = self.pulls
        for energy_pull in energy_pulls:
            energy_pull.add_(drop * pull).mul_(shrink).add_(depths.mul_(terms).to(weight.dtype) @ weight)
        pull.mul_(shrink).add_(terms.to(weight.dtype) @ weight)

    def columns(self) -> Tensor:
        """(5, C) log-probability, entropy, log of the sum of squared probabilities, log of the norm, is likeliest."""
        own, total = self._own_and_total()
        log_total = total.log()
        log_sum_squares = (self.squares + own**2).log() - 2.0 * log_total
        entropy = log_total - self._mean_depth()
        logprob, is_likeliest = self.target - self.peak - log_total, (self.target >= self.peak).float()
        return torch.stack([logprob, entropy, log_sum_squares, self.peak + log_total, is_likeliest])

    def unit_gradients(self, weight: Tensor) -> Iterator[Tensor]:
        """(C, H) float32 each, gradients with respect to the hidden state: of the log-probability, of the entropy."""
        if not self.pulls:
            return
        (own, total), mean, chain = self._own_and_total(), self._mean_depth(), self.asked.transform.chain
        (pull, *energy_pulls), target_weight = self.pulls, weight[self.targets]
        yield chain(self.others / total, self.target)[:, None] * target_weight - pull / total[:, None]
        for energy_pull in energy_pulls:
            push = chain(own * (self.target - self.peak - mean) / total, self.target)
            yield (mean[:, None] * pull - energy_pull) / total[:, None] - push[:, None] * target_weight

    def _own_and_total(self) -> tuple[Tensor, Tensor]:
        """(C,) exp(z - peak) of the target, and its sum over all words."""
        own = torch.exp(self.target - self.peak)
        return own, self.others + own

    def _mean_depth(self) -> Tensor:
        """(C,) expectation of z - peak, at most 0."""
        own, total = self._own_and_total()
        return (self.energy + own * (self.target - self.peak)) / total


def _recomputed_gradients(
    ctx: Any, gradient: Tensor, entropy_gradient: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weight and bias for a head that is trained."""
    hidden, weight, bias, targets, log_norm, entropy = ctx.saved_tensors
    wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
    weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
    bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
    row_tiles, column_tiles = _tiles(hidden, weight)
    for rows, part in product(row_tiles, column_tiles):
        logits = ctx.asked.transform(_linear(hidden[rows], weight[part], None if bias is None else bias[part]))
        index, inside = _inside(targets[rows], part)
        logprobs = logits - log_norm[rows, None]
        probs = torch.exp(logprobs)
        unit = torch.neg(probs).scatter_add_(1, index, inside.float()) * gradient[rows, None]
        if ctx.asked.entropy_gradient:
            unit -= probs * (logprobs + entropy[rows, None]) * entropy_gradient[rows, None]
        logit_gradient = ctx.asked.transform.chain(unit, logits)
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
