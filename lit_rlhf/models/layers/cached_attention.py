"""Attention of the newest token of many responses over a cache: prompts once, responses beside them.

The row that a model sees holds the newest token of every living response. Each attends to its prompt, whose keys are
stored once for all responses to it, and to its own response; the two parts are joined by the logarithms of their
softmax sums (Juravsky et al., "Hydragen", arXiv 2402.05099). Responses to one prompt ask as queries of one call. What
ends leaves: the last living row moves into its place, so that the living stay in front and little is copied.

Shape letters: B living responses, P their prompts, W tokens of the longest prompt, R of the longest possible response,
J key-value heads, G query heads on each, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

_FLASH_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, of the same shape but for the last dimension."""


class CachedRows:
    """Keys and values of prompts and responses, and the layout of a row of newest tokens, one per response.

    Args:
        prompts: keys and values (P, J, W, D) of each layer.
        lengths: tokens of each prompt.
        owners: number of the prompt of each response (B).
        capacity: most tokens of a response that will be cached (R).

    Attributes:
        num_new: tokens of every response, the newest included.
        parts: what each layer computes with, for layers that look it up.
    """

    rows = None
    last_layer = None

    def __init__(
        self, prompts: Sequence[KeyValue], lengths: Sequence[int], owners: Sequence[int], capacity: int
    ) -> None:
        self._prompts = list(prompts)

        def room(x: Tensor) -> Tensor:
            return x.new_empty(len(owners), x.shape[1], capacity, x.shape[3])

        self._responses = [(room(keys), room(values)) for keys, values in prompts]
        self._lengths = list(lengths)
        self._owners = list(owners)
        self._device = prompts[0][0].device
        self.num_new = 0
        self.parts: dict[int, Any] = {}
        self._masks: dict[tuple[int | None, torch.dtype], Tensor | None] = {}
        self._place()

    @property
    def num_tokens(self) -> int:
        """Tokens that there is room for."""
        (prompts, _), (responses, _) = self._prompts[0], self._responses[0]
        return prompts.shape[0] * prompts.shape[2] + responses.shape[0] * responses.shape[2]

    def positions(self) -> Tensor:
        """(B,) int64, depth of the newest token of each response."""
        return torch.tensor([self._lengths[owner] for owner in self._owners], device=self._device) + self.num_new - 1

    def advance(self) -> None:
        """Make room for one more token of each response."""
        self.num_new += 1
        self._masks.clear()

    def keep(self, living: Sequence[int]) -> list[int]:
        """Go on with some responses alone.

        Args:
            living: their places, ascending.

        Returns:
            Their old places in their new order.
        """
        order = _fill_holes(living)
        _move(self._responses, order)
        owners = [self._owners[place] for place in order]
        prompt_order = _fill_holes(sorted(set(owners)))
        _move(self._prompts, prompt_order)
        place_of = {old: new for new, old in enumerate(prompt_order)}
        self._lengths = [self._lengths[old] for old in prompt_order]
        self._owners = [place_of[owner] for owner in owners]
        self._masks.clear()
        self._place()
        return order

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
        """Output (1, B, J * G, D) of one layer; its keys and values join the cache.

        Args:
            layer: number of the layer.
            query: (1, J * G, B, D), of the newest tokens.
            key: (1, J, B, D).
            value: the same shape.
            scaling: of the scores; 1 / sqrt(D) where None.
            window: the latest tokens that a query sees, itself included; None = all.
            softcap: bound of the scores; None = off.
        """
        query = query[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))
        keys, values = self._responses[layer]
        keys[:, :, self.num_new - 1], values[:, :, self.num_new - 1] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        seen = slice(max(0, self.num_new - (window or self.num_new)), self.num_new)
        own, own_norm = attend(query, keys[:, :, seen], values[:, :, seen], None, scaling, softcap)
        if window is None or window > self.num_new:
            given, given_norm = self._attend_prompts(layer, query, scaling, window, softcap)
            own = own.lerp(given, torch.sigmoid(given_norm - own_norm)[..., None].to(own.dtype))
        return own.flatten(1, 2)[None]

    def _attend_prompts(
        self, layer: int, query: Tensor, scaling: float | None, window: int | None, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """Output (B, J, G, D) over the prompts alone, and the logarithms (B, J, G) of the softmax sums."""
        keys, values = (x[:, :, : self._width] for x in self._prompts[layer])
        mask = self._mask(window, query.dtype)
        if self._cells is None:
            return attend(query, keys, values, mask, scaling, softcap)
        groups = query.shape[2]
        grid = query.new_zeros(len(self._lengths) * self._lanes, *query.shape[1:])
        grid[self._cells] = query
        grid = grid.unflatten(0, (-1, self._lanes)).transpose(1, 2).flatten(2, 3)  # (P, J, lanes * G, D)
        output, norm = attend(grid, keys, values, mask, scaling, softcap)
        output, norm = (x.unflatten(2, (-1, groups)).transpose(1, 2).flatten(0, 1) for x in (output, norm))
        return output[self._cells], norm[self._cells]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask (P, 1, 1, W) of the prompts; None = all of every prompt is seen."""
        key = (window, dtype)
        if key not in self._masks:
            lengths = torch.tensor(self._lengths, device=self._device)[:, None, None, None]
            at = torch.arange(self._width, device=self._device)
            seen = at < lengths
            if window is not None:
                seen &= lengths + (self.num_new - 1) - at < window
            # Finite, as a prompt may be out of sight altogether.
            zeros = torch.zeros(seen.shape, dtype=dtype, device=self._device)
            self._masks[key] = None if bool(seen.all()) else zeros.masked_fill_(~seen, torch.finfo(dtype).min / 2)
        return self._masks[key]

    def _place(self) -> None:
        """Where the queries of each response stand among those of its prompt: in lanes, one per living response."""
        self._width = max(self._lengths)
        lanes = [count() for _ in self._lengths]
        lane_of = [next(lanes[owner]) for owner in self._owners]
        self._lanes = max(lane_of) + 1
        cells = [owner * self._lanes + lane for owner, lane in zip(self._owners, lane_of, strict=True)]
        is_grid = cells == list(range(len(self._lengths))) and self._lanes == 1
        self._cells = None if is_grid else torch.tensor(cells, device=self._device)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of every query over all keys of its head, and the logarithms of its softmax sums.

    Args:
        query: (B, J, Q, D).
        key: (B, J, K, D).
        value: (B, J, K, D).
        mask: (B, 1, 1, K), added to the scores; None = nothing is.
        scaling: of the scores; 1 / sqrt(D) where None.
        softcap: bound of the scores; None = off.

    Returns:
        (B, J, Q, D), and (B, J, Q) float32.
    """
    if query.device.type == "cpu" and softcap is None and query.shape[-1] == value.shape[-1]:
        output, norm = _FLASH_ON_CPU(query, key, value, attn_mask=mask, scale=scaling)
        return output, norm
    scores = (query @ key.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores if mask is None else scores + mask
    norm = scores.logsumexp(-1)
    return (scores - norm[..., None]).exp_().to(value.dtype) @ value, norm


def _fill_holes(living: Sequence[int]) -> list[int]:
    """Places of the living, each that lies in front left where it is and the holes filled from the back."""
    late = [place for place in living if place >= len(living)]
    early = set(living)
    return [place if place in early else late.pop() for place in range(len(living))]


def _move(layers: list[KeyValue], order: Sequence[int]) -> None:
    """Let the first places hold what ``order`` names, and forget the rest; only what changes its place is copied."""
    moved = [(old, new) for new, old in enumerate(order) if old != new]
    for number, pair in enumerate(layers):
        for old, new in moved:
            for x in pair:
                x[new] = x[old]
        layers[number] = (pair[0][: len(order)], pair[1][: len(order)])
