"""The forest: trees of text segments in one row.

A *forest* holds trees of text segments in one unpadded row of tokens. Text that shares a beginning is stored once: a
prompt is a root, its responses are its children, a plain sequence is a root alone. A token attends to itself, to what
precedes it in its own segment and to all of its ancestors; its position is its depth in tokens::

    tokens      [ prompt a ........ | chosen a .... | rejected a . || prompt b .. | chosen b ... | rejected b ]
    parent         -1                  0               0              -1             3              3
    position     0 1 2 ...  p-1       p p+1 ...       p p+1 ...      0 1 2 ..       q ...          q ...

A segment without children is a *leaf*; the text from a root to a leaf is a *sequence*. Sequences are numbered by the
order of their leaves in the row, and every per-sequence tensor in the package follows that numbering.

Shape letters: T tokens in the row, S segments, L sequences (leaves), N scored tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, compress, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.types.pictures import Picture


class Segment(NamedTuple):
    """A piece of one tree, before packing.

    Args:
        tokens: token ids.
        scored: one bool per token; True = the log-probability of this token counts (it is a response token).
        parent: index of the parent within the same tree, -1 for the root. Parents come before their children.
        pictures: those that the image tokens stand for, in the order of their runs.
    """

    tokens: Sequence[int]
    scored: Sequence[bool]
    parent: int = -1
    pictures: tuple[Picture, ...] = ()


class Forest(NamedTuple):
    """Trees of segments packed into one row without padding. Make one with :meth:`pack`.

    The layout (``lengths``, ``parents``) is plain Python, so that reading it never waits for a device.

    Args:
        tokens: (T,) int64, token ids.
        positions: (T,) int64, depth of each token in its sequence, from 0.
        targets: (N,) int64, row index of every scored token, ascending.
        predictors: (N,) int64, row index of the token whose hidden state predicts the scored one: the token before it
            in its segment, or the last token of the nearest non-empty ancestor.
        sequences: (N,) int64, number of the sequence that each scored token belongs to.
        lengths: S token counts, one per segment, in row order.
        parents: S indices of parent segments, -1 for roots; a parent precedes its children.
        pictures: those that the image tokens stand for, in the order of their runs in the row; a prompt that several
            responses share holds its pictures once.
        holders: index of the segment that holds each picture.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    predictors: Tensor
    sequences: Tensor
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    holders: tuple[int, ...] = ()

    @classmethod
    def pack(cls, trees: Iterable[Sequence[Segment]]) -> Forest:
        """Lay trees one after another into a row.

        Args:
            trees: each a list of segments, the root first.

        Raises:
            ValueError: if a tree has no root or more than one, a parent does not precede its child, ``scored`` and
                ``tokens`` differ in length, a scored token has nothing before it or does not lie in a leaf, a sequence
                has no tokens, or nothing is given.

        Example:
            >>> prompt = Segment([5, 6], [False, False])
            >>> forest = Forest.pack([[prompt, Segment([7], [True], 0), Segment([8, 9], [True, True], 0)]])
            >>> forest.positions.tolist(), forest.predictors.tolist(), forest.sequences.tolist()
            ([0, 1, 2, 2, 3], [1, 1, 3], [0, 1, 1])
        """
        row = _Row()
        for tree in trees:
            row.add(tree)
        if not row.tokens:
            raise ValueError("a forest needs at least one token")
        tokens, positions, targets, predictors, sequences = map(_as_tensor, row.columns())
        layout = tuple(row.lengths), tuple(row.parents)
        return cls(tokens, positions, targets, predictors, sequences, *layout, tuple(row.pictures), tuple(row.holders))

    def to(self, device: torch.device) -> Forest:
        """The same forest with its tensors on ``device``."""
        return Forest(
            self.tokens.to(device),
            self.positions.to(device),
            self.targets.to(device),
            self.predictors.to(device),
            self.sequences.to(device),
            self.lengths,
            self.parents,
            tuple(picture.to(device) for picture in self.pictures),
            self.holders,
        )

    @property
    def starts(self) -> tuple[int, ...]:
        """Row index of the first token of each segment (S)."""
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return tuple(starts)

    @property
    def leaves(self) -> tuple[int, ...]:
        """Segment index of every leaf, in row order (L)."""
        inner = set(self.parents)
        return tuple(segment for segment in range(len(self.lengths)) if segment not in inner)

    @property
    def ends(self) -> tuple[int, ...]:
        """Row index of the last token of every sequence (L)."""
        starts = self.starts
        inhabited = (next(part for part in reversed(self.path(leaf)) if self.lengths[part]) for leaf in self.leaves)
        return tuple(starts[part] + self.lengths[part] - 1 for part in inhabited)

    @property
    def num_tokens(self) -> int:
        """Tokens in the row (T)."""
        return sum(self.lengths)

    @property
    def num_sequences(self) -> int:
        """Sequences, that is leaves (L)."""
        return len(self.leaves)

    def path(self, segment: int) -> tuple[int, ...]:
        """Segment indices from the root down to ``segment``, both included."""
        path = [segment]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return tuple(reversed(path))

    def seen_in(self, segment: int) -> tuple[Picture, ...]:
        """The pictures of the text from the root to the end of ``segment``, in the order of their runs."""
        if not self.pictures:
            return ()
        path = set(self.path(segment))
        return tuple(picture for picture, at in zip(self.pictures, self.holders, strict=True) if at in path)


def num_sequence_tokens(forest: Forest) -> int:
    """Tokens of all sequences, shared ones counted in each: what rows of their own would hold without padding."""
    return sum(forest.lengths[part] for leaf in forest.leaves for part in forest.path(leaf))


def _as_tensor(column: array[int]) -> Tensor:
    """(N,) int64; a tensor of its own memory is writable, and an empty buffer is none."""
    return torch.frombuffer(column, dtype=torch.int64) if column else torch.empty(0, dtype=torch.int64)


class _Row:
    """Builds the columns of a forest, tree by tree, without a loop over tokens."""

    def __init__(self) -> None:
        self.tokens = array("q")
        self.positions = array("q")
        self.targets = array("q")
        self.predictors = array("q")
        self.sequences = array("q")
        self.lengths: list[int] = []
        self.parents: list[int] = []
        self.pictures: list[Picture] = []
        self.holders: list[int] = []
        self.num_sequences = 0

    def columns(self) -> tuple[array[int], ...]:
        return self.tokens, self.positions, self.targets, self.predictors, self.sequences

    def add(self, tree: Sequence[Segment]) -> None:
        first = len(self.lengths)
        inner = {segment.parent for segment in tree}
        ends: list[tuple[int, int]] = []  # of each segment: depth after it, row index of the last token on its path
        for number, segment in enumerate(tree):
            self._check(number, segment, is_leaf=number not in inner)
            depth, last = ends[segment.parent] if number else (0, -1)
            start, end = len(self.tokens), len(self.tokens) + len(segment.tokens)
            if last < 0 and segment.scored[:1] and segment.scored[0]:
                raise ValueError("the first token of a tree cannot be scored: nothing precedes it")
            known = len(self.targets)
            self.targets.extend(compress(range(start, end), segment.scored))
            self.predictors.extend(compress(chain((last,), range(start, end)), segment.scored))
            self.sequences.extend(repeat(self.num_sequences, len(self.targets) - known))
            self.tokens.extend(segment.tokens)
            self.positions.extend(range(depth, depth + end - start))
            ends.append((depth + end - start, end - 1 if end > start else last))
            self.pictures.extend(segment.pictures)
            self.holders.extend(repeat(len(self.lengths), len(segment.pictures)))
            self.lengths.append(len(segment.tokens))
            self.parents.append(first + segment.parent if number else -1)
            if number not in inner and ends[-1][1] < 0:
                raise ValueError(f"the sequence that ends in segment {number} has no tokens")
            self.num_sequences += number not in inner

    @staticmethod
    def _check(number: int, segment: Segment, is_leaf: bool) -> None:
        if (number == 0) != (segment.parent == -1) or segment.parent >= number:
            raise ValueError(
                f"segment {number} has parent {segment.parent}: a tree has one root, first, with parent -1"
            )
        if len(segment.tokens) != len(segment.scored):
            raise ValueError(f"segment {number}: {len(segment.tokens)} tokens but {len(segment.scored)} scored flags")
        if not is_leaf and any(segment.scored):
            raise ValueError(f"segment {number} has children, so none of its tokens can be scored")
