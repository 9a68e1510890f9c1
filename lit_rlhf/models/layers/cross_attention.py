"""Text that attends to pictures by layers of their own: which tokens see which, over a forest and over a cache.

Keys and values of such a layer are those of the rows of pictures, whatever the text is, so a forest is exact: a tree's
pictures stand in its root, and all of its responses see the same. Each stretch of tokens that sees the same rows is one
call of scaled_dot_product_attention without a mask.

It travels in the place of the model's own mask of these layers.

Shape letters: Q queries, K rows of all pictures, N rows that prompts' ends see, B responses, J key-value heads, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_rlhf.models.layers.cached_attention import CachedRows, KeyValue


class Sight(NamedTuple):
    """Consecutive tokens of a text that see the same of its pictures.

    Args:
        start: place of the first one.
        end: place after the last one.
        pictures: numbers of the pictures, in the order of the text.
        is_before: whether they stand before the first picture.
    """

    start: int
    end: int
    pictures: range
    is_before: bool = False


def sights(images: Sequence[int], start: int, end: int) -> list[Sight]:
    """What the tokens of a text see, by the rules of ``MllamaProcessor``.

    A token sees the last pictures before it that no text parts, itself included. Where tokens stand before the first
    picture, transformers lets them attend to all of them, and to what fills them up.

    Args:
        images: places of its image tokens, one for each picture, ascending.
        start: place of its first token.
        end: place after its last one.

    Example:
        >>> [(sight.start, sight.end, list(sight.pictures)) for sight in sights([2, 3, 7], 0, 9)]
        [(0, 2, [0, 1, 2]), (2, 3, [0]), (3, 7, [0, 1]), (7, 9, [2])]
    """
    if not images:
        return [Sight(start, end, range(0))]
    found = [Sight(start, images[0], range(len(images)), is_before=True)] if images[0] > start else []
    first = 0
    for number, (place, following) in enumerate(pairwise([*images, end])):
        if number and place > images[number - 1] + 1:
            first = number
        found.append(Sight(place, following, range(first, number + 1)))
    return found


class Stretch(NamedTuple):
    """Consecutive queries that see the same rows of pictures.

    Args:
        start: place of the first query.
        end: place after the last one.
        spans: (start, end) ranges of the rows; none = they see nothing.
    """

    start: int
    end: int
    spans: tuple[tuple[int, int], ...] = ()


class SeenPictures:
    """Which tokens of a forest see which rows of pictures. One per forest, shared by all layers that look.

    Args:
        stretches: cover all tokens in order.
        ends: for each tree the rows that its end sees; none where it has no pictures.

    Attributes:
        kept: number of a layer -> keys and values (J, N, D) of the rows that ends see, one tree after another, and a
            row of zeros for a tree without pictures; of layers that were told to keep them.
    """

    def __init__(self, stretches: Sequence[Stretch], ends: Sequence[tuple[tuple[int, int], ...]]) -> None:
        self.stretches = tuple(stretches)
        self.ends = tuple(ends)
        self.kept: dict[int, KeyValue] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None = None,
        keep: bool = False,
    ) -> Tensor:
        """Output (1, Q, heads, D) of a layer: 0 for what sees nothing.

        Args:
            layer: its number.
            query: (1, heads, Q, D).
            key: (1, J, K, D).
            value: the same shape.
            scaling: of the scores; 1 / sqrt(D) where None.
            keep: whether keys and values are kept.
        """
        if keep:
            self.kept[layer] = (self._at_ends(key), self._at_ends(value))
        outputs = []
        for start, end, spans in self.stretches:
            asked = query[:, :, start:end]
            if not spans:
                outputs.append(torch.zeros_like(asked))
                continue
            keys, values = (_cut(x, spans) for x in (key, value))
            grouped = query.shape[1] != key.shape[1]
            outputs.append(scaled_dot_product_attention(asked, keys, values, scale=scaling, enable_gqa=grouped))
        return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()

    @property
    def lengths(self) -> list[int]:
        """Rows that each end sees, as they are kept: a row of zeros, which gives nothing, where it sees none."""
        return [sum(end - start for start, end in spans) or 1 for spans in self.ends]

    def _at_ends(self, x: Tensor) -> Tensor:
        nothing = x.new_zeros(1, x.shape[1], 1, x.shape[3])
        return torch.cat([_cut(x, spans) if spans else nothing for spans in self.ends], dim=2)[0].detach()


class CachedPictures:
    """What a row of newest tokens, one per response, sees of the pictures of their prompts.

    Args:
        seen: of each forest of prompts what was seen and kept; the number of its prompts where they have no pictures.
        owners: number of the prompt of each response (B), ascending.
    """

    def __init__(self, seen: Sequence[SeenPictures | int], owners: Sequence[int]) -> None:
        kept = next(one.kept for one in seen if isinstance(one, SeenPictures))
        lengths: list[int] = []
        for one in seen:
            lengths += [1] * one if isinstance(one, int) else one.lengths
        self._cache = CachedRows(((layer, _joined(seen, layer)) for layer in kept), lengths, owners, capacity=0)

    def keep(self, living: Sequence[int]) -> None:
        """Go on with the responses at these places alone, ascending."""
        self._cache.keep(living)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None = None,
        keep: bool = False,
    ) -> Tensor:
        """Output (1, B, heads, D) of a layer; ``key`` and ``value`` (1, J, 1, D) stand for nothing, none is kept."""
        return self._cache.attend(layer, query, key, value, scaling)


def _cut(x: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """(1, J, rows, D) of some ranges of (1, J, K, D); one range is not copied."""
    parts = [x[:, :, start:end] for start, end in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _joined(seen: Sequence[SeenPictures | int], layer: int) -> KeyValue:
    """Keys and values (J, N, D) of what prompts see, one after another."""
    keys, values = next(one.kept[layer] for one in seen if isinstance(one, SeenPictures))
    pairs = [
        (keys.new_zeros(len(keys), one, keys.shape[2]), values.new_zeros(len(values), one, values.shape[2]))
        if isinstance(one, int)
        else one.kept[layer]
        for one in seen
    ]
    keys, values = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
    return keys, values
