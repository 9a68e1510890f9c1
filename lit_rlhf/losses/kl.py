"""KL divergence of the policy from the reference, estimated from the tokens that the policy drew.

With d = log pi(y) - log pi_ref(y) of a token y that pi drew (Schulman, 2020, http://joschu.net/blog/kl-approx.html):

==========  ==================  =============================================================================
``kl_k1``   d                   unbiased, of high variance, negative at times: the penalty in PPO's reward
``kl_k2``   d^2 / 2             biased, of low variance, never negative
``kl_k3``   exp(-d) - 1 + d     unbiased, of low variance, never negative: the one to read in a log
==========  ==================  =============================================================================

A good number is not a good loss. The tokens came from the policy, so the true gradient of KL(pi || pi_ref) is the
expectation of d * grad log pi, and of the three only k2 has it. On average the gradient of k1 is 0, and the gradient of
k3 is that of the other divergence, KL(pi_ref || pi). Hence two losses, for use beside the policy's: ``kl_k2_loss``, and
``kl_k3_loss`` with the value of k3 and the gradient of k2 (Tang and Munos, 2025, https://arxiv.org/abs/2506.09477).

Either loss sees what a token costs itself, not where it leads the tokens after it; a penalty in the reward sees both.

The estimators are clamped, because exp of one bad token must not end a run, and a clamp has no gradient: a token past
the limit would no longer be pulled back at all. The losses therefore do not clamp; past the limit their pull stays what
it is there. N counts scored tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_rlhf.losses.shapes import check_tokens

_LARGEST_ERROR = 0.2
"""The share by which a divergence may miss its target before the controller's answer stops growing."""


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor, *, max_log_ratio: float = 20.0, max_kl: float = 10.0) -> Tensor:
    """The log-ratio itself: what PPO takes off the reward of each token.

    Args:
        logprobs: (N,) log-probabilities of the tokens under the policy that drew them, in nats.
        ref_logprobs: (N,) the same under the reference.
        max_log_ratio: limit of the log-ratio's size, in nats.
        max_kl: limit of the estimate's size, in nats.

    Returns:
        (N,) nats per token; summed over a response, and averaged over many, the divergence per response.

    Raises:
        ValueError: if the shapes are not (N,).

    Source:
        Schulman (2020), http://joschu.net/blog/kl-approx.html; in the reward Ziegler et al. (2019), eq. 2,
        https://arxiv.org/abs/1909.08593

    Example:
        >>> kl_k1(torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-1.5, -1.0, -90.0])).tolist()
        [0.5, -1.0, 10.0]
    """
    return _log_ratios(logprobs, ref_logprobs, max_log_ratio).clamp(-max_kl, max_kl)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, *, max_log_ratio: float = 20.0, max_kl: float = 10.0) -> Tensor:
    """Half the squared log-ratio.

    Args:
        logprobs: (N,) log-probabilities of the tokens under the policy that drew them, in nats.
        ref_logprobs: (N,) the same under the reference.
        max_log_ratio: limit of the log-ratio's size, in nats.
        max_kl: limit of the estimate, in nats.

    Returns:
        (N,) nats per token, not below 0.

    Raises:
        ValueError: if the shapes are not (N,).

    Source:
        Schulman (2020), http://joschu.net/blog/kl-approx.html

    Example:
        >>> kl_k2(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])).tolist()
        [0.125, 0.5]
    """
    return (_log_ratios(logprobs, ref_logprobs, max_log_ratio) ** 2 / 2).clamp(max=max_kl)


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, *, max_log_ratio: float = 20.0, max_kl: float = 10.0) -> Tensor:
    """The log-ratio plus what is 0 on average and makes every single estimate at least 0.

    Between an update and the policy that drew the tokens this is PPO's ``approx_kl``: give the drawn ones first,
    ``kl_k3(old_logprobs, logprobs)``.

    Args:
        logprobs: (N,) log-probabilities of the tokens under the policy that drew them, in nats.
        ref_logprobs: (N,) the same under the reference.
        max_log_ratio: limit of the log-ratio's size, in nats.
        max_kl: limit of the estimate, in nats.

    Returns:
        (N,) nats per token, not below 0.

    Raises:
        ValueError: if the shapes are not (N,).

    Source:
        Schulman (2020), http://joschu.net/blog/kl-approx.html

    Example:
        >>> kl_k3(torch.tensor([-1.0, -2.0, -90.0]), torch.tensor([-1.5, -1.0, -1.0]))
        tensor([ 0.1065,  0.7183, 10.0000])
    """
    log_ratios = _log_ratios(logprobs, ref_logprobs, max_log_ratio)
    return (torch.expm1(-log_ratios) + log_ratios).clamp(max=max_kl)


def kl_k2_loss(logprobs: Tensor, ref_logprobs: Tensor, *, max_log_ratio: float = 20.0) -> Tensor:
    """k2 as a loss: its gradient, log-ratio times grad log pi, is that of KL(pi || pi_ref) on the policy's own tokens.

    Args:
        logprobs: (N,) log-probabilities of the tokens under the policy that drew them, in nats; carry the gradient.
        ref_logprobs: (N,) the same under the reference.
        max_log_ratio: log-ratio, in nats, past which the loss grows in a straight line (Huber's), so that the pull on
            a token neither explodes nor ends.

    Returns:
        (N,) losses in nats, not below 0.

    Raises:
        ValueError: if the shapes are not (N,).

    Source:
        Tang and Munos (2025), https://arxiv.org/abs/2506.09477

    Example:
        >>> logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
        >>> losses = kl_k2_loss(logprobs, torch.tensor([-1.5, -1.0]))
        >>> losses.sum().backward()
        >>> losses.tolist(), logprobs.grad.tolist()
        ([0.125, 0.5], [0.5, -1.0])
    """
    check_tokens(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return F.huber_loss(logprobs, ref_logprobs.detach(), reduction="none", delta=max_log_ratio)


def kl_k3_loss(logprobs: Tensor, ref_logprobs: Tensor, *, max_log_ratio: float = 20.0, max_kl: float = 10.0) -> Tensor:
    """The value of k3 with the gradient of k2 ("k3+"): the better number to read, and the right way down.

    Args:
        logprobs: (N,) log-probabilities of the tokens under the policy that drew them, in nats; carry the gradient.
        ref_logprobs: (N,) the same under the reference.
        max_log_ratio: limit of the log-ratio's size in value and gradient, in nats; the gradient stays at the limit.
        max_kl: limit of the value, in nats; the gradient does not see it.

    Returns:
        (N,) losses in nats, not below 0.

    Raises:
        ValueError: if the shapes are not (N,).

    Source:
        Tang and Munos (2025), https://arxiv.org/abs/2506.09477

    Example:
        >>> logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
        >>> losses = kl_k3_loss(logprobs, torch.tensor([-1.5, -1.0]))
        >>> losses.sum().backward()
        >>> losses.tolist() == kl_k3(logprobs, torch.tensor([-1.5, -1.0])).tolist(), logprobs.grad.tolist()
        (True, [0.5, -1.0])
    """
    descent = kl_k2_loss(logprobs, ref_logprobs, max_log_ratio=max_log_ratio)
    value = kl_k3(logprobs.detach(), ref_logprobs.detach(), max_log_ratio=max_log_ratio, max_kl=max_kl)
    return value + (descent - descent.detach())  # the bracket is 0 and has the gradient


def adapted_kl_coef(
    coef: float, observed_kl: float, *, target: float, num_responses: int, horizon: float = 10_000
) -> float:
    """The KL coefficient of the next iteration: up when the policy is further from the reference than asked, else down.

    A proportional controller in log space, ``coef * (1 + error * num_responses / horizon)``, where the error is
    ``observed_kl / target - 1`` within -0.2 and 0.2. The coefficient is state: it belongs in checkpoints.

    Args:
        coef: of this iteration.
        observed_kl: of this iteration, in nats per response (k1 summed over its tokens), mean over responses and ranks.
        target: in nats per response; 6 usual.
        num_responses: of this iteration, over all ranks.
        horizon: responses after which an error of 0.2 has changed the coefficient by a factor of about e^0.2.

    Returns:
        The coefficient of the next iteration.

    Raises:
        ValueError: if ``target`` is not above 0, ``observed_kl`` is not finite, or ``horizon`` is so short that the
            coefficient could reach 0 in one step.

    Source:
        Ziegler et al. (2019), section 2.2, https://arxiv.org/abs/1909.08593

    Example:
        >>> round(adapted_kl_coef(0.1, 6.6, target=6.0, num_responses=500), 6)  # error 0.1, times 500 / 10000
        0.1005
    """
    if not target > 0:
        raise ValueError(f"the KL target must be above 0 nats per response, got {target}")
    if not math.isfinite(observed_kl):
        raise ValueError(
            f"observed_kl is {observed_kl}: log-probabilities of the policy or the reference are not finite"
        )
    if num_responses * _LARGEST_ERROR >= horizon:
        shortest = num_responses * _LARGEST_ERROR
        raise ValueError(
            f"horizon {horizon} is too short for {num_responses} responses an iteration: it must exceed {shortest:g},"
            " else one step could take the KL coefficient to 0"
        )
    error = min(max(observed_kl / target - 1.0, -_LARGEST_ERROR), _LARGEST_ERROR)
    return coef * (1.0 + error * num_responses / horizon)


def _log_ratios(logprobs: Tensor, ref_logprobs: Tensor, limit: float) -> Tensor:
    """(N,) log pi - log pi_ref, within the limit."""
    check_tokens(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return (logprobs - ref_logprobs).clamp(-limit, limit)
