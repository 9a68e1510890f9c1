"""What several ranks must agree on: counts, the rows of a step, and names."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def num_ranks() -> int:
    """Processes that train together; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_rank() -> bool:
    """Whether this process is the one that writes what all have in common."""
    return num_ranks() == 1 or dist.get_rank() == 0


def sum_over_ranks(counts: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, the same on each; not differentiable."""
    if num_ranks() == 1:
        return counts
    summed = _as_sent(counts).clone()
    dist.all_reduce(summed)
    return summed.to(counts.dtype)


def _as_sent(tensor: Tensor) -> Tensor:
    """In a type that all ranks send: one without rows has zeros in the default type, which may be bfloat16."""
    return tensor.double() if tensor.is_floating_point() else tensor


def most_over_ranks(number: int, device: torch.device) -> int:
    """The largest of the ranks' numbers, the same on each.

    Args:
        number: of this rank.
        device: that the ranks communicate on.
    """
    if num_ranks() == 1:
        return number
    most = torch.tensor(number, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all ranks, one rank after another; ranks may have different numbers of them. Not differentiable.

    Args:
        rows: (n, D) of this rank.

    Returns:
        (sum of n, D), and the index at which this rank's rows begin.
    """
    if num_ranks() == 1:
        return rows, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(num_ranks())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(size) for size in sizes)
    sent = _as_sent(rows)
    padded = sent.new_zeros(longest, rows.shape[1])
    padded[: len(rows)] = sent
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    begin = sum(int(size) for size in sizes[: dist.get_rank()])
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)]).to(rows.dtype), begin


def gather_texts(text: str, device: torch.device) -> list[str]:
    """The texts of all ranks, in their order.

    Args:
        text: of this rank.
        device: that the ranks communicate on.
    """
    letters = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)[:, None]
    marked = torch.cat([letters.new_zeros(1, 1), letters])  # no text holds a zero byte: each rank's begins with one
    return bytes(gather_rows(marked)[0].flatten().tolist()).decode().split("\0")[1:]
