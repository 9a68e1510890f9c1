"""Tokenised pairs to batches: micro-batches of at most a token budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from lit_rlhf.types import Cursor, Forest, PreferenceBatch, PreferencePairs, Segment


class TokenPair(NamedTuple):
    """One preference in tokens.

    Args:
        prompt: token ids of the prompt, at least one: the first token of a response needs one before it.
        chosen: token ids of the preferred response, all scored.
        rejected: token ids of the other response, all scored.
        margin: by how much chosen is better, in the unit of the data; 0 where unknown.
        row: address of the row, such as ``train.jsonl:17``.
        source: name of the data source.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    margin: float = 0.0
    row: str = ""
    source: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens in the forest, the prompt counted once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def pack_pairs(
    pairs: Sequence[TokenPair],
    token_budget: int,
    notes: Mapping[str, int] | None = None,
    cursor: Cursor = Cursor(),
) -> PreferenceBatch:
    """Make the batch of one optimizer step.

    Pairs go, longest first, each into the first micro-batch that has room for it.

    Args:
        pairs: the pairs of the step; may be empty.
        token_budget: tokens per micro-batch; a longer pair gets one to itself.
        notes: counts of what happened to rows on the way.
        cursor: where a stream goes on after this batch.

    Raises:
        ValueError: if a prompt or a response is empty.

    Example:
        >>> batch = pack_pairs([TokenPair([1, 2], [3], [4, 5]), TokenPair([1], [6], [7])], token_budget=8)
        >>> [pairs.forest.lengths for pairs in batch.micro_batches]
        [(2, 1, 2, 1, 1, 1)]
    """
    bins = fill_bins([pair.num_tokens for pair in pairs], token_budget)
    micro_batches = tuple(_micro_batch([pairs[index] for index in members]) for members in bins)
    return PreferenceBatch(micro_batches, dict(notes or {}), cursor)


def fill_bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Sort items into bins by first fit, largest first; an item above the capacity has a bin of its own.

    Args:
        sizes: size of each item.
        capacity: what the items of one bin may add up to.

    Returns:
        Indices of the items of each bin, ascending; bins in the order of their first items.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        fitting = (number for number, left in enumerate(room) if sizes[index] <= left)
        number = next(fitting, len(bins))
        if number == len(bins):
            bins.append([])
            room.append(capacity)
        bins[number].append(index)
        room[number] -= sizes[index]
    return sorted(map(sorted, bins))


def _micro_batch(pairs: Sequence[TokenPair]) -> PreferencePairs:
    return PreferencePairs(
        forest=Forest.pack(map(_tree, pairs)),
        chosen=torch.arange(0, 2 * len(pairs), 2),
        rejected=torch.arange(1, 2 * len(pairs), 2),
        margins=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        rows=tuple(pair.row for pair in pairs),
        sources=tuple(pair.source for pair in pairs),
    )


def _tree(pair: TokenPair) -> list[Segment]:
    if not (pair.prompt and pair.chosen and pair.rejected):
        raise ValueError(f"pair {pair.row!r} has an empty prompt or response: {pair}")
    responses = [Segment(tokens, [True] * len(tokens), parent=0) for tokens in (pair.chosen, pair.rejected)]
    return [Segment(pair.prompt, [False] * len(pair.prompt)), *responses]
