"""Advantages: from scores of responses to how much better each token did than expected.

Two ways: with a critic, ``token_rewards`` and ``gae``; without one, the other responses to the same prompt are what is
expected, ``group_advantages`` and ``leave_one_out_advantages``. Nothing here carries a gradient.

Shape letters: L responses, R tokens of the longest one. A response's cells may lie anywhere in its row: cells outside
``response_mask`` (padding, or tokens that a tool wrote) are skipped, not passed through. Whatever they hold, NaN too,
changes nothing, and the numbers are those of the response's own tokens put side by side.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_rlhf.losses.rounding import without_rounding
from lit_rlhf.losses.shapes import check_cells, check_sequences

_VARIANCE_FLOOR = 1e-8
"""Added to a variance that is divided by: advantages that hardly differ stay small."""

_STD_FLOOR = 1e-4
"""Added to a standard deviation of scores that is divided by; that of TRL."""


class Advantages(NamedTuple):
    """What the policy and the critic learn from, 0 outside the responses.

    Args:
        advantages: (L, R) how much better each token did than the critic expected.
        returns: (L, R) what the critic should have said.
    """

    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def token_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, *, kl_coef: float) -> Tensor:
    """The reward of each token: the penalty for leaving the reference, and at the last token the response's score.

    Args:
        scores: (L,) of the responses.
        kl: (L, R) divergence from the reference of each token, in nats; k1 usual.
        response_mask: (L, R) bool, True = a token of the response.
        kl_coef: price of a nat, in the unit of the scores; 0.05 usual, 0.01 for long responses.

    Returns:
        (L, R) rewards, 0 outside the responses.

    Raises:
        ValueError: if the shapes are not (L,) and (L, R).

    Source:
        Ziegler et al. (2019), eq. 2, https://arxiv.org/abs/1909.08593; Ouyang et al. (2022), https://arxiv.org/abs/2203.02155

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> token_rewards(torch.tensor([1.0]), torch.tensor([[2.0, -1.0, 5.0]]), mask, kl_coef=0.5).tolist()
        [[-1.0, 1.5, 0.0]]
    """
    check_cells(kl=kl, response_mask=response_mask)
    check_sequences(scores=scores, lengths=response_mask.sum(1))
    number = response_mask.cumsum(1)
    is_last = response_mask & (number == number[:, -1:])
    return torch.where(response_mask, -kl_coef * kl, 0.0) + torch.where(is_last, scores[:, None], 0.0)


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    *,
    gamma: float = 1.0,
    gae_lambda: float | Tensor = 0.95,
    value_lambda: float | Tensor | None = None,
) -> Advantages:
    """Generalised advantage estimation: a weighted mean of all n-step advantages.

    With the error of the critic at each token, delta_t = r_t + gamma V_(t+1) - V_t, and V = 0 behind the last token,

        A_t = delta_t + gamma lambda A_(t+1),    returns_t = A_t + V_t.

    Args:
        rewards: (L, R) of the tokens.
        values: (L, R) the critic's guess of the rewards from each token on, itself included.
        response_mask: (L, R) bool, True = a token of the response.
        gamma: discount per token, in [0, 1]; 1 usual.
        gae_lambda: weight of later errors, in [0, 1]; 0.95 usual, 1 for long chains of thought. Or (L,), one for each
            response, such as :func:`length_adaptive_lambda`.
        value_lambda: the same for the returns (VAPO's decoupled estimate, where it is 1). None: as ``gae_lambda``.

    Returns:
        Two (L, R) tensors, 0 outside the responses.

    Raises:
        ValueError: if the shapes are not (L, R), or a setting lies outside [0, 1].

    Source:
        Schulman et al. (2015), eq. 16, https://arxiv.org/abs/1506.02438; decoupled: Yue et al. (2025), VAPO,
        https://arxiv.org/abs/2504.05118

    Example:
        >>> rewards, values, mask = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), torch.ones(1, 2).bool()
        >>> gae(rewards, values, mask, gae_lambda=0.5)
        Advantages(advantages=tensor([[0.2500, 0.5000]]), returns=tensor([[0.7500, 1.0000]]))
    """
    check_cells(rewards=rewards, values=values, response_mask=response_mask)
    _check_shares(gamma=gamma, gae_lambda=gae_lambda, value_lambda=value_lambda)
    order = response_mask.long().argsort(dim=1, descending=True, stable=True)  # the response's tokens come first
    mask = response_mask.gather(1, order)
    rewards, values = (torch.where(mask, cells.gather(1, order), 0.0) for cells in (rewards, values))
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    errors = rewards + gamma * following - values
    advantages = _discounted_sums(errors, gamma * gae_lambda)
    returns = values + (advantages if value_lambda is None else _discounted_sums(errors, gamma * value_lambda))
    return Advantages(*(torch.zeros_like(cells).scatter(1, order, cells) for cells in (advantages, returns)))


def length_adaptive_lambda(lengths: Tensor, *, alpha: float = 0.05) -> Tensor:
    """VAPO's lambda of each response, 1 - 1 / (alpha length): the longer it is, the further back its end is felt.

    Args:
        lengths: (L,) tokens of the responses.
        alpha: above 0; 0.05 in the paper, with which responses of up to 20 tokens get 0.

    Returns:
        (L,) float32, in [0, 1).

    Raises:
        ValueError: if the shape is not (L,), or ``alpha`` is not above 0.

    Source:
        Yue et al. (2025), VAPO, https://arxiv.org/abs/2504.05118

    Example:
        >>> length_adaptive_lambda(torch.tensor([10, 40, 400]))
        tensor([0.0000, 0.5000, 0.9500])
    """
    check_sequences(lengths=lengths)
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    return (1.0 - 1.0 / (alpha * lengths.float())).clamp(min=0.0)


def discounted_returns(rewards: Tensor, response_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """The rewards from each token on, itself included.

    Args:
        rewards: (L, R) of the tokens.
        response_mask: (L, R) bool, True = a token of the response.
        gamma: discount per token, in [0, 1].

    Returns:
        (L, R) returns, 0 outside the responses.

    Raises:
        ValueError: if the shapes are not (L, R), or ``gamma`` lies outside [0, 1].

    Example:
        >>> discounted_returns(torch.tensor([[1.0, 0.0, 4.0]]), torch.ones(1, 3).bool(), gamma=0.5).tolist()
        [[2.0, 2.0, 4.0]]
    """
    return gae(rewards, torch.zeros_like(rewards), response_mask, gamma=gamma, gae_lambda=1.0).returns


@torch.no_grad()
def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, mean: Tensor | None = None, var: Tensor | None = None
) -> Tensor:
    """Shift and scale to mean 0 and variance 1.

    Give it a whole rollout: of a part of it, such as a minibatch, the mean and the variance are noise.

    Args:
        values: of any shape.
        mask: bool, of the same shape, True = counts.
        shift_mean: False puts the mean back after scaling, as for rewards, whose mean says something.
        mean: scalar, over all ranks; None: of these values.
        var: scalar, over all ranks, without Bessel's correction; None: of these values.

    Returns:
        Of the shape of ``values``; 0 where masked. Equal values become 0 (or their mean), not what rounding makes of
        them.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Andrychowicz et al. (2020), https://arxiv.org/abs/2006.05990

    Example:
        >>> whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
        tensor([-1.,  1.,  0.])
    """
    if values.shape != mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} differ in shape")
    count = mask.sum().clamp(min=1)
    mean = torch.where(mask, values, 0.0).sum() / count if mean is None else mean
    deviations = torch.where(mask, values - mean, 0.0)
    var = without_rounding((deviations**2).sum() / count if var is None else var, mean)
    whitened = torch.where(var == 0, 0.0, deviations * (var + _VARIANCE_FLOOR).rsqrt())
    return whitened if shift_mean else torch.where(mask, whitened + mean, 0.0)


@torch.no_grad()
def group_advantages(scores: Tensor, groups: Tensor, *, scale: Literal["group", "batch", "none"] = "group") -> Tensor:
    """GRPO: how much better a response scored than the mean of the responses to its prompt.

    Args:
        scores: (L,) of the responses.
        groups: (L,) int64, number of the prompt of each response; any numbers, in any order. All equal: the mean of the
            batch is the baseline.
        scale: divided by the standard deviation (with Bessel's correction) of the group (GRPO) or of the batch, or not
            at all (Dr. GRPO, which does not favour prompts whose scores hardly differ).

    Returns:
        (L,) advantages. 0 in a group of one response and in a group of equal scores: nothing is known there.

    Raises:
        ValueError: if the shapes are not (L,), or ``scale`` is unknown.

    Source:
        Shao et al. (2024), section 4.1.2, https://arxiv.org/abs/2402.03300; Dr. GRPO: Liu et al. (2025),
        https://arxiv.org/abs/2503.20783

    Example:
        >>> scores, groups = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])
        >>> group_advantages(scores, groups, scale="none").tolist()
        [-1.0, 1.0, 0.0]
        >>> group_advantages(scores, groups)
        tensor([-0.7071,  0.7071,  0.0000])
    """
    means, sizes = _group_means(scores, groups)
    deviations = scores - means
    if scale == "none":
        return deviations
    if scale == "group":
        variance = _group_means(deviations**2, groups)[0] * sizes / (sizes - 1).clamp(min=1)
    elif scale == "batch":
        variance = ((scores - scores.mean()) ** 2).sum() / max(len(scores) - 1, 1)
    else:
        raise ValueError(f"scale must be 'group', 'batch' or 'none', got {scale!r}")
    std = without_rounding(variance, means).sqrt()
    return torch.where(std == 0, 0.0, deviations / (std + _STD_FLOOR))


@torch.no_grad()
def leave_one_out_advantages(scores: Tensor, groups: Tensor) -> Tensor:
    """RLOO: how much better a response scored than the mean of the other responses to its prompt.

    Args:
        scores: (L,) of the responses.
        groups: (L,) int64, number of the prompt of each response; any numbers, in any order.

    Returns:
        (L,) advantages. 0 in a group of one response, which has no other to be compared with.

    Raises:
        ValueError: if the shapes are not (L,).

    Source:
        Ahmadian et al. (2024), section 3.2, https://arxiv.org/abs/2402.14740

    Example:
        >>> leave_one_out_advantages(torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([0, 0, 0, 1])).tolist()
        [-3.0, 0.0, 3.0, 0.0]
    """
    means, sizes = _group_means(scores, groups)
    return (scores - means) * sizes / (sizes - 1).clamp(min=1)


def _group_means(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(L,) mean of each response's group, and (L,) its size."""
    check_sequences(scores=scores, groups=groups)
    names, number = groups.unique(return_inverse=True)
    sizes = torch.bincount(number, minlength=len(names))
    sums = scores.new_zeros(len(names)).index_add(0, number, scores)
    return (sums / sizes)[number], sizes[number]


def _discounted_sums(errors: Tensor, discount: float | Tensor) -> Tensor:
    """(L, R) sums of what stands in a cell and, discounted once per cell, in the cells behind it."""
    sums = torch.empty_like(errors)
    later = errors.new_zeros(len(errors))
    for column in reversed(range(errors.shape[1])):
        later = errors[:, column] + discount * later
        sums[:, column] = later
    return sums


def _check_shares(**settings: float | Tensor | None) -> None:
    for name, setting in settings.items():
        if setting is not None and not bool(((torch.as_tensor(setting) >= 0) & (torch.as_tensor(setting) <= 1)).all()):
            raise ValueError(f"{name} must lie in [0, 1], got {setting}")
