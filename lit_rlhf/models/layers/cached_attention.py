"""Attention of the newest token of many responses over a cache: prompts once, responses beside them.

The row that a model sees holds the newest token of every living response. Each attends to its prompt, whose keys are
stored once for all responses to it (the idea is that of Juravsky et al., "Hydragen", arXiv 2402.05099), and to its own
response. Scores over both stand in one buffer, prompts flush right and responses behind them, so that one softmax joins
them and a sliding window is a range of columns.

A step reads the whole cache, so prompts are not padded to the longest: consecutive ones of like length form a
*block*, as long as reading the padding costs less than one more call. What ends leaves, and those behind it move up.

Shape letters: B living responses, P prompts, W tokens of the longest one, R of the longest possible response; p prompts
of a block, n responses to them, w tokens of its longest; J key-value heads, G query heads on each, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.models.layers.step_parts import StepParts

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, of the same shape but for the last dimension."""

_CALL_BYTES = {"cpu": 2**18}
"""Bytes that are read in the time that one more call takes; 32 MiB elsewhere, which is not measured."""


class _Block(NamedTuple):
    """Consecutive prompts and the living responses to them.

    Args:
        rows: range of the responses.
        columns: range of the scores, as wide as the longest prompt.
        num_prompts: p.
        lanes: most responses to one of the prompts.
        cells: (n,) int64, place of each response among p * lanes; None = every prompt has one.
    """

    rows: slice
    columns: slice
    num_prompts: int
    lanes: int = 1
    cells: Tensor | None = None

    def spread(self, x: Tensor) -> Tensor:
        """(p * J, lanes * G, N): what stands in the rows of the block (of B, J, G, N), side by side for each prompt."""
        x = x[self.rows]
        if self.cells is None:
            return x.flatten(0, 1)
        grid = x.new_zeros(self.num_prompts * self.lanes, *x.shape[1:]).index_copy_(0, self.cells, x)
        return grid.unflatten(0, (-1, self.lanes)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def gathered(self, x: Tensor, groups: int) -> Tensor:
        """(n, J, G, N): the way back."""
        x = x.unflatten(0, (self.num_prompts, -1))
        if self.cells is None:
            return x
        return x.unflatten(2, (-1, groups)).transpose(1, 2).flatten(0, 1).index_select(0, self.cells)


class CachedRows:
    """Keys and values of prompts and responses, and the layout of a row of newest tokens, one per response.

    Args:
        prompts: number and keys (J, T, D) and values of each layer: all prompts one after another.
        lengths: tokens of each prompt, at least one.
        owners: number of the prompt of each response (B), ascending.
        capacity: most tokens of a response that will be cached (R); with 0 a response sees its prompt alone.
        parts: what the layers compute with.

    Attributes:
        num_new: tokens of every response, the newest included.
    """

    rows = None
    last_layer = None

    def __init__(
        self,
        prompts: Iterable[tuple[int, KeyValue]],
        lengths: Sequence[int],
        owners: Sequence[int],
        capacity: int,
        parts: StepParts | None = None,
    ) -> None:
        self.parts = parts or StepParts()
        self.num_new = 0
        self._lengths, self._owners = list(lengths), list(owners)
        self._prompts: dict[int, list[KeyValue]] = {}
        self._responses: dict[int, KeyValue] = {}
        for layer, (keys, values) in prompts:
            if not self._prompts:
                self._device = keys.device
                self._sizes = _block_sizes(lengths, keys[:, 0].nbytes + values[:, 0].nbytes, keys.device)
            blocks = (_in_blocks(x, lengths, self._sizes) for x in (keys, values))
            self._prompts[layer] = list(zip(*blocks, strict=True))
            self._responses[layer] = (_room(keys, len(owners), capacity), _room(values, len(owners), capacity))
        self._place()

    @property
    def num_tokens(self) -> int:
        """Tokens that there is room for."""
        first = next(iter(self._prompts))
        keys = [self._responses[first][0], *(keys for keys, _ in self._prompts[first])]
        return sum(x.shape[0] * x.shape[2] for x in keys)

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is cached."""
        pairs = [*self._responses.values(), *(block for blocks in self._prompts.values() for block in blocks)]
        return sum(x.nbytes for pair in pairs for x in pair)

    def positions(self) -> Tensor:
        """(B,) int64, depth of the newest token of each response."""
        return self._row_lengths + self.num_new - 1

    def advance(self) -> None:
        """Make room for one more token of each response."""
        self.num_new += 1
        self._masks.clear()

    def keep(self, living: Sequence[int]) -> None:
        """Go on with some responses alone; their order stays.

        Args:
            living: their places, ascending.
        """
        owners = [self._owners[place] for place in living]
        staying = sorted(set(owners))
        places = [[number - block.start for number in staying if number in block] for block in _ranges(self._sizes)]
        self._lengths = [self._lengths[number] for number in staying]
        self._owners = [staying.index(owner) for owner in owners]
        self._sizes = [len(block) for block in places if block]
        self._place()
        for layer, blocks in self._prompts.items():
            self._responses[layer] = _moved_up(self._responses[layer], living, self.num_new)
            moved = [_moved_up(block, stay) for block, stay in zip(blocks, places, strict=True) if stay]
            widths = [block.columns.stop - block.columns.start for block in self._blocks]
            self._prompts[layer] = [(k[:, :, -w:], v[:, :, -w:]) for (k, v), w in zip(moved, widths, strict=True)]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Output (1, B, J * G, D) of one layer; its keys and values join the cache where it made room for them.

        Args:
            layer: number of the layer.
            query: (1, J * G, B, D), of the newest tokens.
            key: (1, J, B, D).
            value: the same shape but for the last dimension.
            scaling: of the scores; 1 / sqrt(D) where None.
            window: the latest tokens that a query sees, itself included; None = all.
            softcap: bound of the scores; None = off.
        """
        keys, values = (x[:, :, : self.num_new] for x in self._responses[layer])
        if self.num_new:
            keys[:, :, -1], values[:, :, -1] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        query = query[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))
        end, groups = self._width + self.num_new, query.shape[2]
        blocks = [
            (_Block(slice(None), slice(self._width, end), len(query)), (keys, values))
        ]  # every row its own prompt
        if window is None or window > self.num_new:
            blocks += zip(self._blocks, self._prompts[layer], strict=True)
        scores = query.new_zeros(*query.shape[:3], end, dtype=torch.float32)
        for block, (block_keys, _) in blocks:
            scored = torch.bmm(block.spread(query), block_keys.flatten(0, 1).transpose(1, 2))
            scores[block.rows, ..., block.columns] = block.gathered(scored, groups)
        scores *= query.shape[-1] ** -0.5 if scaling is None else scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.softmax(scores.add_(self._mask(window)), dim=-1).to(value.dtype)
        output = weights.new_zeros(*query.shape[:3], value.shape[-1])
        for block, (_, block_values) in blocks:
            given = torch.bmm(block.spread(weights[..., block.columns]), block_values.flatten(0, 1))
            output[block.rows] += block.gathered(given, groups)
        return output.flatten(1, 2)[None]

    def _mask(self, window: int | None) -> Tensor:
        """Additive mask (B, 1, 1, W + num_new): -inf before the prompt and outside of the window."""
        if window not in self._masks:
            end = self._width + self.num_new
            first = (self._width - self._row_lengths).clamp(min=0 if window is None else end - window)
            hidden = (torch.arange(end, device=self._device) < first[:, None])[:, None, None]
            self._masks[window] = torch.zeros(hidden.shape, device=self._device).masked_fill_(hidden, -torch.inf)
        return self._masks[window]

    def _place(self) -> None:
        """Where the living stand."""
        self._masks: dict[int | None, Tensor] = {}
        self._width = max(self._lengths)
        self._row_lengths = torch.tensor([self._lengths[owner] for owner in self._owners], device=self._device)
        self._blocks = []
        row = 0
        for prompts in _ranges(self._sizes):
            counts = [self._owners.count(number) for number in prompts]
            width, lanes = max(self._lengths[number] for number in prompts), max(counts)
            places = [number * lanes + lane for number, count in enumerate(counts) for lane in range(count)]
            cells = torch.tensor(places, device=self._device) if lanes > 1 else None
            rows, columns = slice(row, row + sum(counts)), slice(self._width - width, self._width)
            self._blocks.append(_Block(rows, columns, len(prompts), lanes, cells))
            row = rows.stop


def _block_sizes(lengths: Sequence[int], token_bytes: int, device: torch.device) -> list[int]:
    """Numbers of consecutive prompts that are padded to the longest of them."""
    spare = _CALL_BYTES.get(device.type, 2**25) // token_bytes
    blocks: list[list[int]] = []
    for length in lengths:
        block = [*blocks[-1], length] if blocks else []
        if block and len(block) * max(block) - sum(block) <= spare:
            blocks[-1] = block
        else:
            blocks.append([length])
    return [len(block) for block in blocks]


def _ranges(sizes: Sequence[int]) -> list[range]:
    """Consecutive ranges of these sizes, from zero on."""
    return [range(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]


def _in_blocks(x: Tensor, lengths: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
    """(p, J, w, D) of each block out of (J, T, D). Cells before a prompt repeat its first token; a mask hides them."""
    spans, blocks = _ranges(lengths), []
    for prompts in _ranges(sizes):
        width = max(lengths[number] for number in prompts)
        cells = [max(spans[number].stop - at, spans[number].start) for number in prompts for at in range(width, 0, -1)]
        block = x.index_select(1, torch.tensor(cells, device=x.device)).unflatten(1, (-1, width))
        blocks.append(block.transpose(0, 1).contiguous())
    return blocks


def _room(like: Tensor, num_rows: int, capacity: int) -> Tensor:
    """(num_rows, J, capacity, D)."""
    return like.new_empty(num_rows, like.shape[0], capacity, like.shape[2])


def _moved_up(pair: KeyValue, places: Sequence[int], filled: int | None = None) -> KeyValue:
    """The rows at ``places``, ascending, in front and the rest forgotten; only what changes its place is copied."""
    first = next((new for new, old in enumerate(places) if new != old), len(places))
    late = torch.tensor(places[first:], dtype=torch.int64, device=pair[0].device)
    if len(late):
        for x in pair:
            x[first : len(places), :, :filled] = x[:, :, :filled].index_select(0, late)
    return pair[0][: len(places)], pair[1][: len(places)]
