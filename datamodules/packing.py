"""Tokenised rows to batches: micro-batches of at most a token budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from lit_rlhf.types import (
    Cursor,
    Forest,
    InstructionBatch,
    Instructions,
    PreferenceBatch,
    PreferencePairs,
    Segment,
    UnpairedBatch,
    UnpairedResponses,
)

Item = TypeVar("Item", "TokenTree", "TokenSequence")
Micro = TypeVar("Micro")

_BEGINNING = Cursor()


class TokenResponse(NamedTuple):
    """One response in tokens.

    Args:
        tokens: token ids, at least one.
        scored: one bool per token; True = its log-probability counts.
    """

    tokens: Sequence[int]
    scored: Sequence[bool]


class TokenTree(NamedTuple):
    """A prompt with its responses in tokens.

    Args:
        prompt: token ids of the prompt, at least one: the first token of a response needs one before it.
        responses: what follows the prompt.
        preferences: pairs of responses as (index of the better, index of the other, by how much it is better).
        labels: one per response where they were judged alone; True = thumb up.
        row: address of the row, such as ``train.jsonl:17``.
        source: name of the data source.
    """

    prompt: Sequence[int]
    responses: Sequence[TokenResponse]
    preferences: Sequence[tuple[int, int, float]] = ()
    labels: Sequence[bool] = ()
    row: str = ""
    source: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens in the forest, the prompt counted once."""
        return len(self.prompt) + sum(len(response.tokens) for response in self.responses)


class TokenSequence(NamedTuple):
    """One text in tokens.

    Args:
        tokens: token ids, at least two.
        scored: one bool per token; True = its log-probability counts. Never the first: nothing precedes it.
        row: address of the row, such as ``train.jsonl:17``.
        source: name of the data source.
    """

    tokens: Sequence[int]
    scored: Sequence[bool]
    row: str = ""
    source: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens in the forest."""
        return len(self.tokens)


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
    cursor: Cursor = _BEGINNING,
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
    return pack_trees([_tree_of(pair) for pair in pairs], token_budget, notes, cursor)


def pack_trees(
    trees: Sequence[TokenTree],
    token_budget: int,
    notes: Mapping[str, int] | None = None,
    cursor: Cursor = _BEGINNING,
) -> PreferenceBatch:
    """Make the batch of one optimizer step from prompts whose responses are preferred to each other.

    Args:
        trees: a response that is in no preference is left out; may be empty.
        token_budget: tokens per micro-batch; a longer tree gets one to itself.
        notes: counts of what happened to rows on the way.
        cursor: where a stream goes on after this batch.

    Raises:
        ValueError: if a prompt or a response is empty, or a tree has no preference.

    Example:
        >>> responses = [TokenResponse([token], [True]) for token in (7, 8, 9)]
        >>> batch = pack_trees([TokenTree([1, 2], responses, [(2, 0, 1.0), (2, 1, 0.5), (1, 0, 0.5)])], token_budget=8)
        >>> batch.micro_batches[0].chosen.tolist(), batch.micro_batches[0].rejected.tolist()
        ([2, 2, 1], [0, 1, 0])
    """
    micro_batches, fill = _fill(list(map(_in_preferences, trees)), token_budget, _pairs)
    return PreferenceBatch(micro_batches, {**(notes or {}), **fill}, cursor)


def pack_unpaired(
    trees: Sequence[TokenTree],
    token_budget: int,
    notes: Mapping[str, int] | None = None,
    cursor: Cursor = _BEGINNING,
) -> UnpairedBatch:
    """Make the batch of one optimizer step from prompts whose responses have labels.

    Args:
        trees: with one label per response; may be empty.
        token_budget: tokens per micro-batch; a longer tree gets one to itself.
        notes: counts of what happened to rows on the way.
        cursor: where a stream goes on after this batch.

    Raises:
        ValueError: if a prompt or a response is empty, or there is not one label per response.
    """
    for tree in trees:
        if not tree.responses or len(tree.labels) != len(tree.responses):
            raise ValueError(f"row {tree.row!r} has {len(tree.responses)} responses but {len(tree.labels)} labels")
    micro_batches, fill = _fill(trees, token_budget, _unpaired)
    return UnpairedBatch(micro_batches, {**(notes or {}), **fill}, cursor)


def pack_sequences(
    sequences: Sequence[TokenSequence],
    token_budget: int,
    notes: Mapping[str, int] | None = None,
    cursor: Cursor = _BEGINNING,
) -> InstructionBatch:
    """Make the batch of one optimizer step from texts to imitate.

    Args:
        sequences: the texts of the step; may be empty.
        token_budget: tokens per micro-batch; a longer text gets one to itself.
        notes: counts of what happened to rows on the way.
        cursor: where a stream goes on after this batch.

    Raises:
        ValueError: if a text is empty or its first token is scored.
    """
    micro_batches, fill = _fill(sequences, token_budget, _instructions)
    return InstructionBatch(micro_batches, {**(notes or {}), **fill}, cursor)


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


def _fill(
    items: Sequence[Item], token_budget: int, make: Callable[[Sequence[Item]], Micro]
) -> tuple[tuple[Micro, ...], dict[str, int]]:
    """Make micro-batches, and count their tokens beside the room that the budget gives; more where one item is longer.

    An empty step has neither.
    """
    bins = fill_bins([item.num_tokens for item in items], token_budget)
    counts = [sum(items[index].num_tokens for index in members) for members in bins]
    fill = {"tokens": sum(counts), "room": sum(max(count, token_budget) for count in counts)} if bins else {}
    return tuple(make([items[index] for index in members]) for members in bins), fill


def _pairs(trees: Sequence[TokenTree]) -> PreferencePairs:
    better, worse, margins, first = [], [], [], 0
    for tree in trees:
        better += [first + index for index, _, _ in tree.preferences]
        worse += [first + index for _, index, _ in tree.preferences]
        margins += [margin for _, _, margin in tree.preferences]
        first += len(tree.responses)
    return PreferencePairs(
        forest=Forest.pack(map(_segments, trees)),
        chosen=torch.tensor(better),
        rejected=torch.tensor(worse),
        margins=torch.tensor(margins, dtype=torch.float32),
        rows=tuple(tree.row for tree in trees for _ in tree.preferences),
        sources=tuple(tree.source for tree in trees for _ in tree.preferences),
    )


def _unpaired(trees: Sequence[TokenTree]) -> UnpairedResponses:
    return UnpairedResponses(
        forest=Forest.pack(map(_segments, trees)),
        labels=torch.tensor([label for tree in trees for label in tree.labels]),
        rows=tuple(tree.row for tree in trees for _ in tree.labels),
        sources=tuple(tree.source for tree in trees for _ in tree.labels),
    )


def _instructions(sequences: Sequence[TokenSequence]) -> Instructions:
    return Instructions(
        forest=Forest.pack([Segment(sequence.tokens, sequence.scored)] for sequence in sequences),
        rows=tuple(sequence.row for sequence in sequences),
        sources=tuple(sequence.source for sequence in sequences),
    )


def _segments(tree: TokenTree) -> list[Segment]:
    if not tree.prompt or not all(response.tokens for response in tree.responses):
        raise ValueError(f"row {tree.row!r} has an empty prompt or response: {tree}")
    responses = [Segment(tokens, scored, parent=0) for tokens, scored in tree.responses]
    return [Segment(tree.prompt, [False] * len(tree.prompt)), *responses]


def _tree_of(pair: TokenPair) -> TokenTree:
    responses = [TokenResponse(tokens, [True] * len(tokens)) for tokens in (pair.chosen, pair.rejected)]
    return TokenTree(pair.prompt, responses, [(0, 1, pair.margin)], (), pair.row, pair.source)


def _in_preferences(tree: TokenTree) -> TokenTree:
    """Leave out the responses that are in no preference."""
    used = sorted({index for preference in tree.preferences for index in preference[:2]})
    if not used:
        raise ValueError(f"row {tree.row!r} has no preference between its responses")
    if len(used) == len(tree.responses):
        return tree
    number = {index: number for number, index in enumerate(used)}
    return tree._replace(
        responses=[tree.responses[index] for index in used],
        preferences=[(number[better], number[worse], margin) for better, worse, margin in tree.preferences],
    )
