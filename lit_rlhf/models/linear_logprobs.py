"""Hidden states to log-probabilities, without logits: the one primitive that every algorithm uses.

    z = transform(h W^T + b),   log p(y | h) = z_y - logsumexp(z)

is computed for chunks of rows, so that no (N, V) tensor ever exists, forward or backward. While W is frozen the
gradient of each log-probability with respect to its hidden state,

    d log p(y | h) / d h = (transform'(z) * (onehot(y) - p)) W,

needs no knowledge of the loss: it is formed in the forward, while the chunk's logits are at hand, and scaled by the
incoming gradient in the backward. That is two matrix products where recomputing the logits takes three. When W itself
is trained, the backward recomputes the chunks.

Shape letters: N scored tokens, H hidden size, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 23
"""Logits held at one time; times 4 bytes, a few times over, is the memory of the head."""


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
        unit_gradient = torch.empty_like(hidden) if needs_hidden and not needs_weight else None
        columns = torch.zeros(3, hidden.shape[0], dtype=torch.float32, device=hidden.device)
        for rows in _chunks(hidden.shape[0], weight.shape[0]):
            logits = transform(_linear(hidden[rows], weight, bias))
            log_norm = torch.logsumexp(logits, dim=-1)
            columns[0, rows] = logits.gather(1, targets[rows, None])[:, 0] - log_norm
            if with_log_sum_squares:
                columns[2, rows] = torch.logsumexp(2.0 * logits, dim=-1) - 2.0 * log_norm
            if unit_gradient is None and not with_entropy:
                continue
            probs = torch.exp(logits - log_norm[:, None])
            if with_entropy:
                columns[1, rows] = log_norm - torch.linalg.vecdot(probs, logits)
            if unit_gradient is not None:
                gradient = transform.chain(_onehot_minus(probs, targets[rows]), logits)
                unit_gradient[rows] = gradient.to(weight.dtype) @ weight
        logprobs, entropy, log_sum_squares = columns.unbind()
        ctx.mark_non_differentiable(entropy, log_sum_squares)
        ctx.transform = transform
        if unit_gradient is not None:
            ctx.save_for_backward(unit_gradient)
        elif needs_weight:
            ctx.save_for_backward(hidden, weight, bias, targets)
        return logprobs, entropy, log_sum_squares

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (unit_gradient,) = ctx.saved_tensors
            return (unit_gradient * gradient[:, None]).to(unit_gradient.dtype), None, None, None, None, None, None
        return (*_recomputed_gradients(ctx, gradient), None, None, None, None)


def _recomputed_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weight and bias for a head that is trained."""
    hidden, weight, bias, targets = ctx.saved_tensors
    wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
    weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
    bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
    for rows in _chunks(hidden.shape[0], weight.shape[0]):
        logits = ctx.transform(_linear(hidden[rows], weight, bias))
        unit = _onehot_minus(torch.softmax(logits, dim=-1), targets[rows])
        logit_gradient = ctx.transform.chain(unit, logits) * gradient[rows, None]
        if bias_gradient is not None:
            bias_gradient += logit_gradient.sum(0)
        logit_gradient = logit_gradient.to(weight.dtype)
        if hidden_gradient is not None:
            hidden_gradient[rows] = logit_gradient @ weight
        if weight_gradient is not None:
            weight_gradient += logit_gradient.T @ hidden[rows].to(weight.dtype)
    return (
        hidden_gradient,
        None if weight_gradient is None else weight_gradient.to(weight.dtype),
        None if bias_gradient is None else bias_gradient.to(bias.dtype),
    )


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias)


def _onehot_minus(probs: Tensor, targets: Tensor) -> Tensor:
    """``onehot(targets) - probs``, in place of ``probs``."""
    return probs.neg_().scatter_add_(1, targets[:, None], torch.ones_like(probs[:, :1]))


def _chunks(num_rows: int, vocabulary: int) -> list[slice]:
    """Row ranges whose logits stay within :data:`CHUNK_ELEMENTS`, at least one row each."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
