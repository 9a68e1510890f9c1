"""Policy gradients: what makes a sampled token likelier where it did better than expected, and rarer where worse.

Schulman et al. (2017), Proximal Policy Optimization, https://arxiv.org/abs/1707.06347. Two things are added to its
eq. 7, as everyone adds them: the upper clip may be wider than the lower one, and where the advantage is negative the
loss stops growing at a large ratio, which eq. 7 leaves without a bound.

The ratios compare the policy with itself before the update, so ``old_logprobs`` must come from the same forward pass,
temperature and precision as ``logprobs``: the first ratio is then 1, and a gradient flows from it. What a sampler of
other precision or weights says belongs into :func:`importance_weights`.

Shape letters: N scored tokens, L responses.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_rlhf.losses.shapes import check_sequences, check_tokens


class PolicyLoss(NamedTuple):
    """A clipped policy loss, and what was clipped.

    Args:
        losses: (N,) not reduced; carry the gradient.
        ratios: (N,) policy over old policy, detached.
        is_clipped_low: (N,) bool, True = a token that should become rarer already is, by the lower clip.
        is_clipped_high: (N,) bool, True = a token that should become likelier already is, by the upper clip.
        is_dual_clipped: (N,) bool, True = a token that should become rarer became much likelier, past ``dual_clip``.
            Clipped tokens of all three kinds have no gradient.
    """

    losses: Tensor
    ratios: Tensor
    is_clipped_low: Tensor
    is_clipped_high: Tensor
    is_dual_clipped: Tensor


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_range: float | None = 0.2,
    clip_range_high: float | None = None,
    dual_clip: float | None = 3.0,
    max_log_ratio: float = 20.0,
) -> PolicyLoss:
    """PPO: the ratio to the old policy times the advantage, as long as the ratio has not gone far enough.

    Args:
        logprobs: (N,) log-probabilities of the sampled tokens, in nats; carry the gradient.
        old_logprobs: (N,) the same before the update; a constant.
        advantages: (N,) how much better each token did than expected; a constant.
        clip_range: by how much the ratio may fall below 1, and rise above it, in (0, 1); 0.2 usual. None clips
            neither, which leaves eq. 6.
        clip_range_high: by how much it may rise above 1 instead; 0.28 keeps entropy up (DAPO's clip-higher). None:
            as ``clip_range``.
        dual_clip: largest ratio that a negative advantage is multiplied by, above 1; 3 usual. None or 0: no bound.
        max_log_ratio: limit of the log-ratio's size, in nats, so that exp cannot overflow. A token past it has no
            gradient, which matters only where nothing else is clipped.

    Returns:
        Five (N,) tensors. Sum the losses, and divide by the tokens of the whole step, over micro-batches and ranks.

    Raises:
        ValueError: if the shapes are not (N,), or a clip is out of its range.

    Source:
        Schulman et al. (2017), eq. 7, https://arxiv.org/abs/1707.06347; clip-higher: Yu et al. (2025), DAPO,
        https://arxiv.org/abs/2503.14476; dual clip: Ye et al. (2019), https://arxiv.org/abs/1912.09729

    Example:
        >>> ratios, advantages = torch.tensor([1.0, 1.5, 1.5, 4.0]), torch.tensor([2.0, 2.0, -2.0, -2.0])
        >>> clipped_policy_loss(ratios.log(), torch.zeros(4), advantages).losses
        tensor([-2.0000, -2.4000,  3.0000,  6.0000])
    """
    check_tokens(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    lowest, highest, dual = _bounds(clip_range, clip_range_high, dual_clip)
    advantages = advantages.detach()
    ratios = (logprobs - old_logprobs.detach()).clamp(-max_log_ratio, max_log_ratio).exp()
    is_better = advantages >= 0
    clipped = torch.where(is_better, ratios.clamp(max=highest), ratios.clamp(min=lowest, max=dual))
    seen = ratios.detach()
    return PolicyLoss(
        losses=-clipped * advantages,  # eq. 7: min(r A, clip(r) A), which is to bound r on the side that A pushes to
        ratios=seen,
        is_clipped_low=(advantages < 0) & (seen < lowest),
        is_clipped_high=(advantages > 0) & (seen > highest),
        is_dual_clipped=(advantages < 0) & (seen > dual),
    )


def sequence_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sequences: Tensor,
    lengths: Tensor,
    *,
    clip_range: float | None = 3e-4,
    clip_range_high: float | None = 4e-4,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """GSPO: the same with one ratio per response, the geometric mean of those of its tokens.

    Args:
        logprobs: (N,) log-probabilities of the sampled tokens, in nats; carry the gradient.
        old_logprobs: (N,) the same before the update; a constant.
        advantages: (L,) how much better each response did than expected; a constant.
        sequences: (N,) int64, the response that each token belongs to.
        lengths: (L,) scored tokens of each response.
        clip_range: by how much the ratio may fall below 1, in (0, 1); a mean over tokens moves little, hence 3e-4.
        clip_range_high: by how much it may rise above 1. None: as ``clip_range``.
        dual_clip: as in :func:`clipped_policy_loss`; not in the paper.

    Returns:
        Five (L,) tensors. Sum the losses, and divide by the responses of the whole step.

    Raises:
        ValueError: if the shapes are not (N,) and (L,), or a clip is out of its range.

    Source:
        Zheng et al. (2025), GSPO, https://arxiv.org/abs/2507.18071

    Example:
        >>> ratios, sequences, lengths = torch.tensor([4.0, 1.0, 0.5]), torch.tensor([0, 0, 1]), torch.tensor([2, 1])
        >>> sequence_policy_loss(ratios.log(), torch.zeros(3), torch.tensor([-1.0, -1.0]), sequences, lengths).ratios
        tensor([2.0000, 0.5000])
    """
    check_tokens(logprobs=logprobs, old_logprobs=old_logprobs, sequences=sequences)
    check_sequences(advantages=advantages, lengths=lengths)
    sums = [logprobs.new_zeros(lengths.shape).index_add(0, sequences, each) for each in (logprobs, old_logprobs)]
    new, old = (total / lengths.clamp(min=1) for total in sums)
    return clipped_policy_loss(
        new, old, advantages, clip_range=clip_range, clip_range_high=clip_range_high, dual_clip=dual_clip
    )


def reinforce_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE: the log-probability times the advantage. For one update on what the policy itself just sampled.

    Args:
        logprobs: (N,) log-probabilities of the sampled tokens, in nats; carry the gradient.
        advantages: (N,) how much better each token did than expected; a constant.

    Returns:
        (N,) losses. Their gradient is that of :func:`clipped_policy_loss` where the ratios are 1; their value is not.

    Raises:
        ValueError: if the shapes are not (N,).

    Source:
        Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning

    Example:
        >>> reinforce_loss(torch.tensor([-0.5, -2.0]), torch.tensor([1.0, -1.0])).tolist()
        [0.5, -2.0]
    """
    check_tokens(logprobs=logprobs, advantages=advantages)
    return -advantages.detach() * logprobs


def importance_weights(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    *,
    cap: float = 2.0,
    kind: Literal["truncate", "mask"] = "truncate",
    floor: float = 0.0,
) -> Tensor:
    """Factors on policy losses that make up for a sampler which computes a little differently from the trainer.

    Args:
        logprobs: (N,) log-probabilities of the sampled tokens by the trainer's weights and precision before the
            update (``old_logprobs``), in nats.
        sampler_logprobs: (N,) the same as the sampler computed them.
        cap: largest weight; 2 usual, 5 with "mask".
        kind: "truncate" brings weights beyond ``floor`` and ``cap`` back to them (truncated importance sampling);
            "mask" gives such tokens no weight at all (IcePop).
        floor: smallest weight; 0 usual, 0.5 with "mask".

    Returns:
        (N,) weights, detached; 1 where sampler and trainer agree.

    Raises:
        ValueError: if the shapes are not (N,), ``kind`` is unknown, or not 0 <= ``floor`` <= 1 <= ``cap``.

    Source:
        truncated: Ionides (2008); for language models Yao et al. (2025), https://fengyao.notion.site/off-policy-rl;
        masked: Ling team (2025), Every Step Evolves, https://arxiv.org/abs/2510.18855

    Example:
        >>> logprobs, sampler_logprobs = torch.tensor([0.5, 4.0, 0.25]).log(), torch.tensor([0.5, 1.0, 1.0]).log()
        >>> importance_weights(logprobs, sampler_logprobs)
        tensor([1.0000, 2.0000, 0.2500])
        >>> importance_weights(logprobs, sampler_logprobs, cap=5.0, kind="mask", floor=0.5)
        tensor([1., 4., 0.])
    """
    check_tokens(logprobs=logprobs, sampler_logprobs=sampler_logprobs)
    if kind not in ("truncate", "mask"):
        raise ValueError(f"kind must be 'truncate' or 'mask', got {kind!r}")
    if not 0 <= floor <= 1 <= cap:
        raise ValueError(f"importance weights need 0 <= floor <= 1 <= cap, got floor {floor} and cap {cap}")
    weights = (
        (logprobs - sampler_logprobs).detach().exp()
    )  # of a token the sampler called impossible: inf, past the cap
    bounded = weights.clamp(floor, cap)
    return bounded if kind == "truncate" else weights.where(weights == bounded, 0.0)


def _bounds(clip_range: float | None, high: float | None, dual_clip: float | None) -> tuple[float, float, float]:
    """Smallest and largest ratio, and the largest one where the advantage is negative."""
    if high is None:
        high = clip_range
    if clip_range is not None and not 0 < clip_range < 1:
        raise ValueError(f"clip_range must lie in (0, 1), got {clip_range}; None clips nothing")
    if high is not None and not 0 < high < math.inf:
        raise ValueError(f"clip_range_high must be above 0, got {high}; None takes clip_range")
    if dual_clip and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}; None or 0 leaves it out")
    return (
        0.0 if clip_range is None else 1.0 - clip_range,
        1.0 + (math.inf if high is None else high),
        dual_clip or math.inf,
    )
