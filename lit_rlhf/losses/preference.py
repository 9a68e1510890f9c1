"""Preference losses of the difference between the chosen and the rejected log-ratio.

Direct Preference Optimization (Rafailov et al., 2023, https://arxiv.org/abs/2305.18290) and its relatives. A response's
log-ratio is log pi(y|x) - log pi_ref(y|x) summed over its tokens; beta times it is the implicit reward. B counts pairs.

Where we depart from TRL 1.16, whose numbers these functions otherwise give:

1. Label smoothing of the plain loss, which TRL ignores, is ``conservative_loss``; an offset is ``odpo_loss``.
2. ``discopop_loss`` stays finite where TRL's overflows (a difference below -88 / beta).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_rlhf.losses.marks import allows_divergence
from lit_rlhf.losses.shapes import check_pairs


class PreferenceStatistics(NamedTuple):
    """What is worth watching about each pair; detached.

    Args:
        chosen_rewards: (B,) implicit reward of the chosen response.
        rejected_rewards: (B,) implicit reward of the rejected response.
        margins: (B,) chosen minus rejected reward.
        wins: (B,) bool, True = the chosen response has the higher reward.
        ties: (B,) bool, True = both rewards are equal, as they are before the first step.
    """

    chosen_rewards: Tensor
    rejected_rewards: Tensor
    margins: Tensor
    wins: Tensor
    ties: Tensor


def preference_statistics(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1
) -> PreferenceStatistics:
    """Implicit rewards and who wins.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: scale of the implicit reward.

    Returns:
        Five (B,) tensors, detached.

    Raises:
        ValueError: if the shapes are not (B,).

    Example:
        >>> seen = preference_statistics(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]), beta=0.5)
        >>> seen.margins.tolist(), seen.wins.tolist(), seen.ties.tolist()
        ([1.0, 0.0], [True, False], [False, True])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    chosen, rejected = beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    return PreferenceStatistics(chosen, rejected, chosen - rejected, chosen > rejected, chosen == rejected)


@allows_divergence
def sigmoid_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """DPO: the preferred response should be likelier than the other, more than under the reference.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.1-0.5 usual; towards 0 the reference is ignored.

    Returns:
        (B,) losses; log 2 where policy and reference agree.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Rafailov et al. (2023), eq. 7, https://arxiv.org/abs/2305.18290

    Example:
        >>> sigmoid_loss(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0]), beta=0.5)
        tensor([0.6931, 0.3133])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios))  # eq. 7


@allows_divergence
def conservative_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """Conservative DPO: labels are taken to be wrong with a small probability, so the margin has a finite optimum.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.1-0.5 usual.
        label_smoothing: probability that a label is flipped, in [0, 0.5); 0 is DPO.

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,), or ``label_smoothing`` is out of range.

    Source:
        Mitchell (2023), A note on DPO with noisy preferences, https://ericmitchell.ai/cdpo.pdf

    Example:
        >>> conservative_loss(torch.tensor([3.0]), torch.tensor([1.0]), beta=0.5, label_smoothing=0.25)
        tensor([0.5633])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    _check_label_smoothing(label_smoothing)
    logits = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


@allows_divergence
def robust_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """Robust DPO: unbiased for the loss on clean labels, when labels are flipped with a known probability.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.1-0.5 usual.
        label_smoothing: probability that a label is flipped, in [0, 0.5); 0 is DPO.

    Returns:
        (B,) losses; negative ones are possible.

    Raises:
        ValueError: if the shapes are not (B,), or ``label_smoothing`` is out of range.

    Source:
        Chowdhury et al. (2024), https://arxiv.org/abs/2403.00409

    Example:
        >>> robust_loss(torch.tensor([3.0]), torch.tensor([1.0]), beta=0.5, label_smoothing=0.25)
        tensor([-0.1867])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    _check_label_smoothing(label_smoothing)
    logits = beta * (chosen_logratios - rejected_logratios)
    clean, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


@allows_divergence
def odpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, margins: Tensor, *, beta: float = 0.1, alpha: float = 1.0
) -> Tensor:
    """DPO with an offset: the better the chosen response is known to be, the larger the margin asked for.

    The paper offsets by alpha * f(margin) and prefers f = log, which has no value for ties and unknown margins. Here f
    is the identity, so that a pair with margin 0 is a pair of plain DPO; another f belongs into the data.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        margins: (B,) by how much the chosen response is better, in the unit of the data; 0 where unknown.
        beta: strength of the pull to the reference, 0.1-0.5 usual.
        alpha: offset in reward per unit of margin; 0 is DPO.

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Amini et al. (2024), https://arxiv.org/abs/2402.10571

    Example:
        >>> odpo_loss(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), beta=0.5)
        tensor([0.3133, 0.6931])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios, margins=margins)
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios) - alpha * margins)


@allows_divergence
def hinge_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """A hinge in place of the logistic: pairs whose reward margin is past 1 are left alone.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: reciprocal of the margin in nats at which a pair is left alone.

    Returns:
        (B,) losses, at least 0; 1 where policy and reference agree.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Zhao et al. (2023), SLiC-HF, https://arxiv.org/abs/2305.10425; Liu et al. (2023), RSO,
        https://arxiv.org/abs/2309.06657

    Example:
        >>> hinge_loss(torch.tensor([1.0, 9.0]), torch.tensor([0.0, 0.0]), beta=0.5).tolist()
        [0.5, 0.0]
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return torch.relu(1 - beta * (chosen_logratios - rejected_logratios))


@allows_divergence
def ipo_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """IPO: regress the log-ratio difference to 1 / (2 beta), so that certain preferences do not push without end.

    Log-ratios are averaged over their tokens; the formula with sums grows with the length of the responses.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        chosen_lengths: (B,) tokens of the chosen responses.
        rejected_lengths: (B,) tokens of the rejected ones.
        beta: the paper's tau; the target difference is 1 / (2 beta) nats per token.

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Azar et al. (2023), eq. 17, https://arxiv.org/abs/2310.12036

    Example:
        >>> one, two = torch.tensor([1.0]), torch.tensor([2.0])
        >>> ipo_loss(6 * one, one, two, one, beta=0.5).tolist()
        [1.0]
    """
    delta = _mean_difference(chosen_logratios, rejected_logratios, chosen_lengths, rejected_lengths)
    return (delta - 1 / (2 * beta)) ** 2  # eq. 17


@allows_divergence
def sigmoid_norm_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """DPO on log-ratios averaged over their tokens, so that a long response is not a large reward.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        chosen_lengths: (B,) tokens of the chosen responses.
        rejected_lengths: (B,) tokens of the rejected ones.
        beta: strength of the pull to the reference; 2-10 usual: means are smaller than sums.

    Returns:
        (B,) losses; log 2 where policy and reference agree.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Lambert et al. (2024), Tulu 3, https://arxiv.org/abs/2411.15124

    Example:
        >>> one, two = torch.tensor([1.0]), torch.tensor([2.0])
        >>> sigmoid_norm_loss(6 * one, one, two, one, beta=0.5)
        tensor([0.3133])
    """
    return -F.logsigmoid(
        beta * _mean_difference(chosen_logratios, rejected_logratios, chosen_lengths, rejected_lengths)
    )


@allows_divergence
def exo_pair_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> Tensor:
    """EXO on a pair: reverse KL from the policy's preference to the smoothed label.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.1-0.5 usual.
        label_smoothing: probability of the rejected response under the label, in (0, 0.5).

    Returns:
        (B,) losses, at least 0.

    Raises:
        ValueError: if the shapes are not (B,), or ``label_smoothing`` is out of range.

    Source:
        Ji et al. (2024), eq. 16, https://arxiv.org/abs/2402.00856

    Example:
        >>> exo_pair_loss(torch.tensor([0.0]), torch.tensor([0.0]), label_smoothing=0.25)
        tensor([0.1438])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    if not 0 < label_smoothing < 0.5:
        raise ValueError(f"label_smoothing of exo_pair_loss must lie in (0, 0.5), got {label_smoothing}")
    logits = beta * (chosen_logratios - rejected_logratios)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    chosen = log_p.exp() * (log_p - math.log1p(-label_smoothing))
    return chosen + log_q.exp() * (log_q - math.log(label_smoothing))  # eq. 16 for two responses


@allows_divergence
def discopop_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, tau: float = 0.05
) -> Tensor:
    """DiscoPOP: between the logistic and the exponential loss, mixed by the reward margin. Found by a language model.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference; 0.05 in the paper.
        tau: temperature of the mixing weight, in (0, 1); 0.05 in the paper.

    Returns:
        (B,) losses; not convex: on a hump around margin 0, the gradient points to the rejected response.

    Raises:
        ValueError: if the shapes are not (B,), or ``tau`` is out of range.

    Source:
        Lu et al. (2024), eq. 5, https://arxiv.org/abs/2406.08414

    Example:
        >>> discopop_loss(torch.tensor([0.0]), torch.tensor([0.0]))
        tensor([0.8466])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    if not 0 < tau < 1:
        raise ValueError(f"tau of discopop_loss must lie in (0, 1), got {tau}")
    logits = beta * (chosen_logratios - rejected_logratios)
    logistic = -F.logsigmoid(logits) * torch.sigmoid(-logits / tau)
    return logistic + torch.exp(F.logsigmoid(logits / tau) - logits)  # eq. 5; one exp, or 0 * inf far below zero


def _mean_difference(
    chosen_logratios: Tensor, rejected_logratios: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor
) -> Tensor:
    """Chosen minus rejected log-ratio per token (B,); an empty response counts as one token."""
    check_pairs(
        chosen_logratios=chosen_logratios,
        rejected_logratios=rejected_logratios,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    return chosen_logratios / chosen_lengths.clamp(min=1) - rejected_logratios / rejected_lengths.clamp(min=1)


def _check_label_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
