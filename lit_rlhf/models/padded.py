"""The padded layout: a forest unfolded into one row per sequence, for models that cannot take a forest.

Shape letters: T tokens of the forest, L sequences, M tokens of the longest one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.types import Forest


class PaddedRows(NamedTuple):
    """One right-padded row per sequence.

    Args:
        tokens: (L, M) int64; padding repeats the row's first token and is masked.
        mask: (L, M) int64; 1 = a token, 0 = padding.
        positions: (L, M) int64, depth of each token, 0 on padding.
        cells: (T,) int64, for each token of the forest a cell of the flattened (L * M) rows that holds it. A token that
            several sequences share has one cell in each, which hold the same hidden state; the first is taken.
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    cells: Tensor


def unfold(forest: Forest) -> PaddedRows:
    """Write every sequence of a forest into a row of its own."""
    starts = forest.starts
    paths = []
    for leaf in forest.leaves:
        spans = [range(starts[part], starts[part] + forest.lengths[part]) for part in forest.path(leaf)]
        paths.append([index for span in spans for index in span])
    width = max(len(path) for path in paths)
    cells = [-1] * forest.num_tokens
    for number, path in enumerate(paths):
        for depth, index in enumerate(path):
            if cells[index] < 0:
                cells[index] = number * width + depth
    device = forest.tokens.device
    source = torch.tensor([path + [path[0]] * (width - len(path)) for path in paths], device=device)
    mask = torch.tensor([[1] * len(path) + [0] * (width - len(path)) for path in paths], device=device)
    return PaddedRows(forest.tokens[source], mask, (mask.cumsum(-1) - 1) * mask, torch.tensor(cells, device=device))
