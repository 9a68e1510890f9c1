"""Responses that were judged one by one, packed: with a thumb, with ranks and grades, or step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from datamodules.packing.bins import fill_micro_batches
from datamodules.packing.rows import TokenTree
from lit_rlhf.types import (
    Cursor,
    Forest,
    GradedBatch,
    GradedResponses,
    JudgedSteps,
    JudgedStepsBatch,
    UnpairedBatch,
    UnpairedResponses,
)

_BEGINNING = Cursor()


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
    micro_batches, fill = fill_micro_batches(trees, token_budget, _unpaired)
    return UnpairedBatch(micro_batches, {**(notes or {}), **fill}, cursor)


def pack_graded(
    trees: Sequence[TokenTree],
    token_budget: int,
    notes: Mapping[str, int] | None = None,
    cursor: Cursor = _BEGINNING,
) -> GradedBatch:
    """Make the batch of one optimizer step from prompts whose responses have ranks and grades.

    Args:
        trees: with one rank per response, and the grades of each by as many objectives; may be empty.
        token_budget: tokens per micro-batch; a longer tree gets one to itself.
        notes: counts of what happened to rows on the way.
        cursor: where a stream goes on after this batch.

    Raises:
        ValueError: if a prompt or a response is empty, or there are not one rank and the grades of each response.

    Example:
        >>> from datamodules.packing import TokenResponse
        >>> responses = [TokenResponse([token], [True]) for token in (7, 8)]
        >>> batch = pack_graded([TokenTree([1, 2], responses, ranks=[1, 0], grades=[[2.0], [4.5]])], token_budget=8)
        >>> part = batch.micro_batches[0]
        >>> part.groups.tolist(), part.ranks.tolist(), part.grades.tolist()
        ([0, 0], [1, 0], [[2.0], [4.5]])
    """
    for tree in trees:
        number, ranks, grades = len(tree.responses), len(tree.ranks), len(tree.grades)
        if not number == ranks == grades or not number:
            raise ValueError(f"row {tree.row!r} has {number} responses but {ranks} ranks and {grades} lists of grades")
    micro_batches, fill = fill_micro_batches(trees, token_budget, _graded)
    return GradedBatch(micro_batches, {**(notes or {}), **fill}, cursor)


def pack_steps(
    trees: Sequence[TokenTree],
    token_budget: int,
    notes: Mapping[str, int] | None = None,
    cursor: Cursor = _BEGINNING,
) -> JudgedStepsBatch:
    """Make the batch of one optimizer step from prompts whose responses were judged step by step.

    Args:
        trees: whose scored tokens end judged steps, with one step label for each; may be empty.
        token_budget: tokens per micro-batch; a longer tree gets one to itself.
        notes: counts of what happened to rows on the way.
        cursor: where a stream goes on after this batch.

    Raises:
        ValueError: if a prompt or a response is empty, or there is not one label per scored token.

    Example:
        >>> from datamodules.packing import TokenResponse
        >>> response = TokenResponse([7, 8, 9], [False, True, True])
        >>> batch = pack_steps([TokenTree([1, 2], [response], step_labels=[1.0, 0.0])], token_budget=8)
        >>> batch.micro_batches[0].forest.targets.tolist(), batch.micro_batches[0].labels.tolist()
        ([3, 4], [1.0, 0.0])
    """
    for tree in trees:
        number = sum(sum(response.scored) for response in tree.responses)
        if not number or len(tree.step_labels) != number:
            raise ValueError(f"row {tree.row!r} marks {number} ends of steps but has {len(tree.step_labels)} labels")
    micro_batches, fill = fill_micro_batches(trees, token_budget, _steps)
    return JudgedStepsBatch(micro_batches, {**(notes or {}), **fill}, cursor)


def _unpaired(trees: Sequence[TokenTree]) -> UnpairedResponses:
    return UnpairedResponses(
        Forest.pack(tree.segments for tree in trees),
        torch.tensor([label for tree in trees for label in tree.labels]),
        *_names(trees),
    )


def _graded(trees: Sequence[TokenTree]) -> GradedResponses:
    grades = [grades for tree in trees for grades in tree.grades]
    return GradedResponses(
        Forest.pack(tree.segments for tree in trees),
        torch.tensor([group for group, tree in enumerate(trees) for _ in tree.responses]),
        torch.tensor([rank for tree in trees for rank in tree.ranks]),
        torch.tensor(grades, dtype=torch.float32),
        *_names(trees),
    )


def _steps(trees: Sequence[TokenTree]) -> JudgedSteps:
    return JudgedSteps(
        Forest.pack(tree.segments for tree in trees),
        torch.tensor([label for tree in trees for label in tree.step_labels], dtype=torch.float32),
        *_names(trees),
    )


def _names(trees: Sequence[TokenTree]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Address and source of every response."""
    of_each = [tree for tree in trees for _ in tree.responses]
    return tuple(tree.row for tree in of_each), tuple(tree.source for tree in of_each)
