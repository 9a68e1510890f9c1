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
    _check("pair (B,)", tensors)


def check_responses(**tensors: Tensor) -> None:
    """Refuse tensors that do not hold one number per response; the like of :func:`check_pairs`.

    Args:
        tensors: by name, each (R,) with the same R.

    Raises:
        ValueError: if one is not a vector, or if their lengths differ.
    """
    _check("response (R,)", tensors)


def check_steps(**tensors: Tensor) -> None:
    """Refuse tensors that do not hold one number per judged step; the like of :func:`check_pairs`.

    Args:
        tensors: by name, each (N,) with the same N.

    Raises:
        ValueError: if one is not a vector, or if their lengths differ.
    """
    _check("step (N,)", tensors)


def check_tokens(**tensors: Tensor) -> None:
    """Refuse tensors that do not hold one number per scored token; the like of :func:`check_pairs`.

    Args:
        tensors: by name, each (N,) with the same N.

    Raises:
        ValueError: if one is not a vector, or if their lengths differ.
    """
    _check("token (N,)", tensors)


def check_sequences(**tensors: Tensor) -> None:
    """Refuse tensors that do not hold one number per sequence; the like of :func:`check_pairs`.

    Args:
        tensors: by name, each (L,) with the same L.

    Raises:
        ValueError: if one is not a vector, or if their lengths differ.
    """
    _check("sequence (L,)", tensors)


def check_cells(**tensors: Tensor) -> None:
    """Refuse tensors that do not hold one number per cell of padded responses; the like of :func:`check_pairs`.

    Args:
        tensors: by name, each (L, R) with the same L and R.

    Raises:
        ValueError: if one is not a matrix, or if their shapes differ.
    """
    _check("cell (L, R)", tensors, rank=2)


def _check(unit: str, tensors: dict[str, Tensor], rank: int = 1) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != rank:
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"expected one number per {unit}, got {given}")
