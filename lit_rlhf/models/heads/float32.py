"""Heads stay in float32, whatever is done to the model around them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def without_cast(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same move between devices as ``fn`` makes, without its change of dtype.

    Args:
        fn: what ``Module.to`` and its like do to every tensor.

    Example:
        >>> import torch
        >>> without_cast(lambda tensor: tensor.half())(torch.ones(1)).dtype
        torch.float32
    """

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
