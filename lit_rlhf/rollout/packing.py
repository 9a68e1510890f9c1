"""Rollouts to forests and back: responses with their prompts in packed rows, numbers of their tokens in padded ones.

The scored tokens of a forest are those of its responses, in the order of the rollouts, so that ``padded[mask]`` of the
rollouts and what a model says of the forest stand side by side.

Shape letters: L responses, R tokens of the longest one, N scored tokens of a forest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.types import Forest, Rollouts, Segment


class RolloutMicroBatch(NamedTuple):
    """Some of the responses of an iteration: what one forward pass sees.

    Args:
        forest: the packed prompts and responses; responses to one prompt share it.
        members: (l,) int64, which responses of the rollouts these are, ascending.
    """

    forest: Forest
    members: Tensor


def pack(rollouts: Rollouts, members: Sequence[int], token_budget: int, together: int = 1) -> list[RolloutMicroBatch]:
    """Pack responses into forests of limited size.

    Args:
        rollouts: of this rank.
        members: which of them, ascending.
        token_budget: most tokens of a forest; a response that is longer with its prompt has one to itself.
        together: members that are not parted, such as 2 where they come in pairs; they stand in runs of that many,
            which have one prompt.

    Returns:
        Forests that hold every member once, in their order.
    """
    device = rollouts.tokens.device
    groups, lengths = rollouts.groups.tolist(), rollouts.lengths.tolist()
    tokens = rollouts.tokens.tolist()
    packed: list[RolloutMicroBatch] = []
    runs = [members[at : at + together] for at in range(0, len(members), together)]
    for bin_ in _bins(rollouts, runs, groups, lengths, token_budget):
        trees = []
        for _, tree in groupby(bin_, key=groups.__getitem__):
            responses = list(tree)
            prompt = rollouts.prompts[responses[0]]
            trees.append([Segment(prompt.tokens, [False] * len(prompt.tokens), pictures=prompt.pictures)])
            for member in responses:
                length = lengths[member]
                trees[-1].append(Segment(tokens[member][:length], [True] * length, parent=0))
        packed.append(RolloutMicroBatch(Forest.pack(trees).to(device), torch.tensor(bin_, device=device)))
    return packed


def _bins(
    rollouts: Rollouts, runs: Sequence[Sequence[int]], groups: list[int], lengths: list[int], token_budget: int
) -> Iterator[list[int]]:
    """Members in their order, as many runs at a time as the budget holds; a prompt is counted once per bin."""
    current: list[int] = []
    room = token_budget
    for run in runs:
        prompt = len(rollouts.prompts[run[0]].tokens)
        is_shared = bool(current) and groups[current[-1]] == groups[run[0]]
        length = sum(lengths[member] for member in run)
        cost = length + (0 if is_shared else prompt)
        if current and cost > room:
            yield current
            current, room, cost = [], token_budget, length + prompt
        current.extend(run)
        room -= cost
    if current:
        yield current


def packed_values(padded: Tensor, rollouts: Rollouts, micro_batch: RolloutMicroBatch) -> Tensor:
    """(N,) numbers of the tokens of a micro-batch out of the padded ones (L, R)."""
    return padded[micro_batch.members][rollouts.response_mask[micro_batch.members]]


def response_sums(values: Tensor, micro_batch: RolloutMicroBatch) -> Tensor:
    """(l,) sums of numbers of tokens (N,) over each response of a micro-batch."""
    return values.new_zeros(len(micro_batch.members)).index_add(0, micro_batch.forest.sequences, values)


def padded_values(parts: Sequence[Tensor], rollouts: Rollouts, micro_batches: Sequence[RolloutMicroBatch]) -> Tensor:
    """(L, R) float32 numbers of the tokens of several micro-batches, 0 where there is none.

    Args:
        parts: (N,) numbers, one tensor per micro-batch.
        rollouts: of this rank.
        micro_batches: where the numbers belong.
    """
    padded = torch.zeros_like(rollouts.logprobs)
    for part, micro_batch in zip(parts, micro_batches, strict=True):
        block = padded[micro_batch.members]
        block[rollouts.response_mask[micro_batch.members]] = part.to(padded.dtype)
        padded[micro_batch.members] = block
    return padded
