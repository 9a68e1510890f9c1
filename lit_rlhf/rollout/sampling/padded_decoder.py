"""Decoding with the key-value cache of transformers: rows padded on the left, for any model that has such a cache.

Shape letters: B living rows, P prompts, W widest prompt, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.types import Forest, Picture, Segment


class PaddedDecoder:
    """Hidden states of rows that grow by one token at a time.

    Args:
        backbone: computes in the role that it plays.
        prompts: token ids of each prompt, each computed once.
        owners: number of the prompt of each response (B).
        pictures: of each prompt; empty = none has any.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        pictures: Sequence[tuple[Picture, ...]] = (),
    ) -> None:
        self._decoder = backbone.base.get_decoder()
        self._cache = DynamicCache(config=backbone.base.config)
        device = backbone.base.device
        width = max(map(len, prompts))
        tokens = torch.tensor([[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        self._positions = lengths - 1
        self._shown: dict[str, Tensor] = {}  # beside each token that follows, by row
        positions = (self._mask.cumsum(1) - 1).clamp_(min=0)
        if seen := [picture for own in pictures for picture in own]:
            options = {"past_key_values": self._cache, "use_cache": True}
            self.states = backbone.eyes.own_forward(tokens, self._mask, positions, seen, **options)[:, -1]
            self._shown = backbone.eyes.shown_after(tokens, self._mask, seen)
            roots = zip(prompts, pictures, strict=True)
            forest = Forest.pack([Segment(own, [False] * len(own), -1, shown)] for own, shown in roots)
            self._positions = self._positions + torch.tensor(backbone.eyes.ahead(forest), device=device)
        else:
            self.states = self._forward(tokens, positions)
        self.keep(owners)

    def keep(self, living: Sequence[int]) -> Sequence[int]:
        """Go on with these rows alone, in this order; a row may be named more than once. Returns the order."""
        rows = torch.tensor(living, device=self.states.device)
        self._cache.batch_select_indices(rows)
        self._mask, self._positions, self.states = self._mask[rows], self._positions[rows], self.states[rows]
        self._shown = {name: x[rows] for name, x in self._shown.items()}
        return living

    def step(self, tokens: Tensor) -> None:
        """Append tokens (B,) int64; ``states`` (B, H) become those of the new tokens."""
        self.extend(tokens[:, None])

    def extend(self, tokens: Tensor) -> None:
        """Append several tokens (B, N) int64 to each row; ``states`` (B, H) become those of the last ones."""
        positions = self._positions[:, None] + torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        self._positions = positions[:, -1]
        self._mask = torch.cat([self._mask, self._mask.new_ones(tokens.shape)], dim=1)
        self.states = self._forward(tokens, positions)

    def forget(self, number: int) -> bool:
        """Take the last tokens of each row back, so that others can be appended, several at once.

        Args:
            number: of tokens, less than any row has; maybe none.

        Returns:
            Whether that can be: what slid out of a window does not come back, layers with a state, such as linear
            attention, take one token at a time, and of layers that look at pictures the cache holds no tokens.
        """
        if number and self._shown:
            return False
        kinds = {type(layer) for layer in self._cache.layers}
        if not kinds <= ({DynamicLayer} if number else {DynamicLayer, DynamicSlidingWindowLayer}):
            return False
        if number:
            self._cache.crop(-number)
            self._mask, self._positions = self._mask[:, :-number], self._positions - number
        return True

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states (B, H) of the last column."""
        return self._decoder(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **self._shown,
        ).last_hidden_state[:, -1]
