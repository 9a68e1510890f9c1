"""Anchored losses: each response is pushed by its own log-ratio, up or down from the reference.

They do not only order the two responses, they also say where the chosen one should go; so they depend on more than the
difference, and an f-divergence is not defined for them. B counts pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_rlhf.losses.shapes import check_pairs


def nca_pair_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """NCA on a pair: tell each response from noise, so that the chosen one does not lose likelihood.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.01-0.1 usual.

    Returns:
        (B,) losses; 2 log 2 where policy and reference agree.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Chen et al. (2024), https://arxiv.org/abs/2402.05369

    Example:
        >>> nca_pair_loss(torch.tensor([0.0]), torch.tensor([0.0]))
        tensor([1.3863])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))


def bco_pair_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """BCO on a pair: a classifier of chosen against rejected whose logit is the implicit reward, without a shift.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.01-0.1 usual.

    Returns:
        (B,) losses; 2 log 2 where policy and reference agree.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Jung et al. (2024), https://arxiv.org/abs/2404.04656

    Example:
        >>> bco_pair_loss(torch.tensor([2.0]), torch.tensor([-2.0]), beta=0.5)
        tensor([0.6265])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return -F.logsigmoid(beta * chosen_logratios) - F.logsigmoid(-beta * rejected_logratios)


def sppo_hard_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """SPPO with hard labels: regress the chosen log-ratio to 1 / (2 beta) and the rejected one to its negative.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: reciprocal of the paper's eta; 0.001 there.

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Wu et al. (2024), eq. 4.7 with P = 1 and 0, https://arxiv.org/abs/2405.00675

    Example:
        >>> sppo_hard_loss(torch.tensor([2.0]), torch.tensor([1.0]), beta=0.5).tolist()
        [5.0]
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    target = 1 / (2 * beta)
    return (chosen_logratios - target) ** 2 + (rejected_logratios + target) ** 2  # eq. 4.7


def apo_zero_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-zero: chosen up, rejected down. For data whose chosen responses are better than the model's own.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.1-0.5 usual.

    Returns:
        (B,) losses in (0, 2); 1 where policy and reference agree.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        D'Oosterlinck et al. (2024), eq. 7, https://arxiv.org/abs/2408.06266

    Example:
        >>> apo_zero_loss(torch.tensor([2.0]), torch.tensor([-2.0]), beta=0.5)
        tensor([0.5379])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return torch.sigmoid(-beta * chosen_logratios) + torch.sigmoid(beta * rejected_logratios)  # eq. 7


def apo_down_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-down: both down, the rejected one more. For data whose chosen responses are worse than the model's own.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.1-0.5 usual.

    Returns:
        (B,) losses in (0, 2); 1 where policy and reference agree.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        D'Oosterlinck et al. (2024), eq. 8, https://arxiv.org/abs/2408.06266

    Example:
        >>> apo_down_loss(torch.tensor([-2.0]), torch.tensor([-4.0]), beta=0.5)
        tensor([0.5379])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    difference = chosen_logratios - rejected_logratios
    return torch.sigmoid(beta * chosen_logratios) + torch.sigmoid(-beta * difference)  # eq. 8
