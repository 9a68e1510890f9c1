"""Value losses: what makes the critic's guess of a token's return right, and how right it is. N scored tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.losses.rounding import without_rounding
from lit_rlhf.losses.shapes import check_tokens


class ValueLoss(NamedTuple):
    """A clipped value loss, and what was clipped.

    Args:
        losses: (N,) not reduced; carry the gradient.
        is_clipped: (N,) bool, True = the value has moved further towards the return than it may; it has no gradient.
    """

    losses: Tensor
    is_clipped: Tensor


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range_value: float | None = 0.2
) -> ValueLoss:
    """Half the squared error of the critic, who may not move far in one iteration.

    The larger of the errors of the value and of the value brought back to within ``clip_range_value`` of the old one:
    a value that has moved away from its return is never clipped.

    Args:
        values: (N,) the critic's guesses; carry the gradient.
        old_values: (N,) the same before the update; a constant.
        returns: (N,) what they should be; a constant, not whitened.
        clip_range_value: how far a value may move, in the unit of the scores, above 0; 0.2 usual, 0.5 in OpenRLHF
            and verl. None: as far as it likes.

    Returns:
        Two (N,) tensors. Sum the losses, and divide by the tokens of the whole step, over micro-batches and ranks.

    Raises:
        ValueError: if the shapes are not (N,), or ``clip_range_value`` is not above 0.

    Source:
        Schulman et al. (2017), eq. 9, https://arxiv.org/abs/1707.06347; the clip is that of its authors' code

    Example:
        >>> clipped_value_loss(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
        ValueLoss(losses=tensor([0.3200, 2.0000]), is_clipped=tensor([ True, False]))
    """
    check_tokens(values=values, old_values=old_values, returns=returns)
    if clip_range_value is not None and not clip_range_value > 0:
        raise ValueError(f"clip_range_value must be above 0, got {clip_range_value}; None clips nothing")
    old_values, returns = old_values.detach(), returns.detach()
    losses = (values - returns) ** 2 / 2
    if clip_range_value is None:
        return ValueLoss(losses, torch.zeros_like(losses, dtype=torch.bool))
    near = old_values + (values - old_values).clamp(-clip_range_value, clip_range_value)
    clipped = (near - returns) ** 2 / 2
    return ValueLoss(torch.maximum(losses, clipped), clipped.detach() > losses.detach())


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """The share of the returns' variance that the critic foresaw.

    Args:
        values: (N,) the critic's guesses before the update.
        returns: (N,) what came.

    Returns:
        Scalar: 1 = all of it, 0 = no more than a constant would, below 0 = less than a constant would. 0 as well where
        there is nothing to explain: all returns equal, or one token.

    Raises:
        ValueError: if the shapes are not (N,).

    Example:
        >>> explained_variance(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])).item()
        1.0
    """
    check_tokens(values=values, returns=returns)
    variance, mean = torch.var_mean(returns, correction=0)
    variance = without_rounding(variance, mean)
    return torch.where(variance == 0, 0.0, 1.0 - (returns - values).var(correction=0) / variance)
