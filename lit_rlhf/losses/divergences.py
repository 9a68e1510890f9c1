"""Divergences: the score that takes the log-ratio's place when DPO is held to the reference by another f-divergence.

Wang et al. (2023), Beyond Reverse KL, https://arxiv.org/abs/2309.16240: with u = pi(y|x) / pi_ref(y|x), the implicit
reward is beta * f'(u) up to a constant that cancels between chosen and rejected. Each function maps log u to f'(u), up
to such a constant. Only losses marked ``allows_divergence`` may read these scores.

Where we depart: exponents are capped at 80 nats, because exp overflows float32 at 88.7; past the cap the gradient is 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

_LARGEST_EXPONENT = 80.0


def reverse_kl_scores(logratios: Tensor) -> Tensor:
    """Reverse KL, the divergence of plain DPO: f'(u) = log u.

    Args:
        logratios: (B,) policy minus reference, in nats.

    Returns:
        (B,) scores: the log-ratios themselves.

    Example:
        >>> reverse_kl_scores(torch.tensor([0.0, 1.5])).tolist()
        [0.0, 1.5]
    """
    return logratios


def forward_kl_scores(logratios: Tensor) -> Tensor:
    """Forward KL: f'(u) = 1 - 1/u.

    Args:
        logratios: (B,) policy minus reference, in nats.

    Returns:
        (B,) scores, at most 1.

    Example:
        >>> forward_kl_scores(torch.tensor([0.0, math.log(4.0)])).tolist()
        [0.0, 0.75]
    """
    return -torch.expm1((-logratios).clamp(max=_LARGEST_EXPONENT))


def js_scores(logratios: Tensor) -> Tensor:
    """Jensen-Shannon: f'(u) = log(2u / (1 + u)).

    Args:
        logratios: (B,) policy minus reference, in nats.

    Returns:
        (B,) scores, below log 2.

    Example:
        >>> js_scores(torch.tensor([0.0, math.log(3.0)])).exp()
        tensor([1.0000, 1.5000])
    """
    return math.log(2.0) + F.logsigmoid(logratios)


def alpha_scores(logratios: Tensor, *, alpha: float = 0.5) -> Tensor:
    """The alpha-divergence: f'(u) = (u^(alpha - 1) - 1) / (alpha - 1).

    Args:
        logratios: (B,) policy minus reference, in nats.
        alpha: 0 is the forward KL, 1 the reverse KL; 0.5 usual.

    Returns:
        (B,) scores.

    Example:
        >>> alpha_scores(torch.tensor([0.0, math.log(4.0)]), alpha=0.5).tolist()
        [0.0, 1.0]
    """
    if alpha == 1.0:
        return logratios
    return torch.expm1(((alpha - 1.0) * logratios).clamp(max=_LARGEST_EXPONENT)) / (alpha - 1.0)


def bind_alpha(scores: Callable[..., Tensor], alpha: float) -> Callable[[Tensor], Tensor]:
    """The scores of a divergence with its ``alpha`` set, where it has one.

    Args:
        scores: one of the functions above, or one of your own.
        alpha: ignored by a divergence without one.

    Example:
        >>> bind_alpha(alpha_scores, 1.0)(torch.tensor([0.5])).tolist(), bind_alpha(js_scores, 1.0) is js_scores
        ([0.5], True)
    """
    return partial(scores, alpha=alpha) if "alpha" in inspect.signature(scores).parameters else scores
