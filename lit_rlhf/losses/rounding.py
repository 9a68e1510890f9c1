"""Rounding: what is left of a variance once the part that rounding makes is taken out."""

from __future__ import annotations

import torch
from torch import Tensor

_SHARE = 1e-12
"""Of the squared mean: float32 leaves a variance of about 1e-14 of it between numbers that should be equal."""


def without_rounding(variance: Tensor, mean: Tensor) -> Tensor:
    """The variance, or 0 where it is no more than what rounding leaves between equal numbers.

    Dividing by such a variance would blow rounding errors up to the size of a signal.

    Args:
        variance: of numbers, any shape.
        mean: of the same numbers, of the same shape.

    Returns:
        Of the shape of ``variance``; a NaN stays one, so that it is seen.

    Example:
        >>> without_rounding(torch.tensor([1e-9, 1e-9]), torch.tensor([1000.0, 0.0]))
        tensor([0.0000e+00, 1.0000e-09])
    """
    return torch.where(variance <= _SHARE * mean**2, 0.0, variance)
