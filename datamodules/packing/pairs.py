"""Preferences, packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from datamodules.packing.bins import fill_micro_batches
from datamodules.packing.rows import TokenPair, TokenResponse, TokenTree
from lit_rlhf.types import Cursor, Forest, PreferenceBatch, PreferencePairs

_BEGINNING = Cursor()


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
    micro_batches, fill = fill_micro_batches(list(map(_in_preferences, trees)), token_budget, _pairs)
    return PreferenceBatch(micro_batches, {**(notes or {}), **fill}, cursor)


def _pairs(trees: Sequence[TokenTree]) -> PreferencePairs:
    better, worse, margins, first = [], [], [], 0
    for tree in trees:
        better += [first + index for index, _, _ in tree.preferences]
        worse += [first + index for _, index, _ in tree.preferences]
        margins += [margin for _, _, margin in tree.preferences]
        first += len(tree.responses)
    return PreferencePairs(
        forest=Forest.pack(tree.segments for tree in trees),
        chosen=torch.tensor(better),
        rejected=torch.tensor(worse),
        margins=torch.tensor(margins, dtype=torch.float32),
        rows=tuple(tree.row for tree in trees for _ in tree.preferences),
        sources=tuple(tree.source for tree in trees for _ in tree.preferences),
    )


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
