"""Shapes: the one-line check at the top of a loss that keeps its docstring true."""

from __future__ import annotations

from torch import Tensor


def check_pairs(**tensors: Tensor) -> None:
    """Refuse tensors that do not hold one number per pair.

    Without this, (B, 1) beside (B,) would quietly broadcast to (B, B).

    Args:
        tensors: by name, each (B,) with the same B.

    Raises:
        ValueError: if one is not a vector, or if their lengths differ.

    Example:
        >>> import torch
        >>> check_pairs(chosen_logratios=torch.zeros(2), rejected_logratios=torch.zeros(2, 1))
        Traceback (most recent call last):
        ...
        ValueError: expected one number per pair (B,), got chosen_logratios (2,), rejected_logratios (2, 1)
    """
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"expected one number per pair (B,), got {given}")
