"""Marks: what a caller must know about a loss that its signature does not say.

A mark is an attribute of the function, set by a decorator and read by the question beside it. Questions look through
``functools.partial``, so that a loss with its settings bound keeps its marks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import Tensor

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def whole_batch(loss: Loss) -> Loss:
    """Mark a loss that compares pairs with each other: it must be given all pairs of the step at once."""
    return _mark(loss, "whole_batch")


def averaged_over_chosen_tokens(loss: Loss) -> Loss:
    """Mark a loss whose sum is divided by the step's chosen response tokens instead of its pairs."""
    return _mark(loss, "averaged_over_chosen_tokens")


def allows_divergence(loss: Loss) -> Loss:
    """Mark a loss that stays meaningful when log-ratios are replaced by the scores of an f-divergence.

    Those are the losses of the difference chosen minus rejected, where the normaliser of the optimal policy cancels.
    """
    return _mark(loss, "allows_divergence")


def is_whole_batch(loss: Callable[..., Tensor]) -> bool:
    """Whether ``loss`` must be given all pairs of the step at once.

    Example:
        >>> is_whole_batch(partial(whole_batch(lambda x: x), 1))
        True
    """
    return _has(loss, "whole_batch")


def is_averaged_over_chosen_tokens(loss: Callable[..., Tensor]) -> bool:
    """Whether the sum of ``loss`` is divided by the step's chosen response tokens instead of its pairs.

    Example:
        >>> is_averaged_over_chosen_tokens(lambda x: x)
        False
    """
    return _has(loss, "averaged_over_chosen_tokens")


def is_divergence_allowed(loss: Callable[..., Tensor]) -> bool:
    """Whether ``loss`` may be given f-divergence scores for log-ratios.

    Example:
        >>> is_divergence_allowed(allows_divergence(lambda x: x))
        True
    """
    return _has(loss, "allows_divergence")


def _mark(loss: Loss, name: str) -> Loss:
    vars(loss)[name] = True
    return loss


def _has(loss: Callable[..., Tensor], name: str) -> bool:
    while isinstance(loss, partial):
        loss = loss.func
    return name in vars(loss)
