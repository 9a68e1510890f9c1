"""Which rows go into which micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from datamodules.packing.rows import TokenSequence, TokenTree

Item = TypeVar("Item", TokenTree, TokenSequence)
Micro = TypeVar("Micro")


def fill_bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Sort items into bins by first fit, largest first; an item above the capacity has a bin of its own.

    Args:
        sizes: size of each item.
        capacity: what the items of one bin may add up to.

    Returns:
        Indices of the items of each bin, ascending; bins in the order of their first items.
    """
    bins: list[list[int]] = []
    room = np.full(len(sizes), capacity)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        fits = room[: len(bins)] >= sizes[index]
        number = int(fits.argmax()) if fits.any() else len(bins)
        if number == len(bins):
            bins.append([])
        bins[number].append(index)
        room[number] -= sizes[index]
    return sorted(map(sorted, bins))


def fill_micro_batches(
    items: Sequence[Item], token_budget: int, make: Callable[[Sequence[Item]], Micro]
) -> tuple[tuple[Micro, ...], dict[str, int]]:
    """Make micro-batches, and count their tokens beside the room that the budget gives; more where one item is longer.

    Args:
        items: the rows of a step. An empty step has neither micro-batches nor counts.
        token_budget: tokens per micro-batch; a longer row gets one to itself.
        make: makes a micro-batch of its rows.

    Returns:
        The micro-batches, and ``tokens`` and ``room`` for the notes of the batch.
    """
    bins = fill_bins([item.num_tokens for item in items], token_budget)
    counts = [sum(items[index].num_tokens for index in members) for members in bins]
    fill = {"tokens": sum(counts), "room": sum(max(count, token_budget) for count in counts)} if bins else {}
    return tuple(make([items[index] for index in members]) for members in bins), fill
