"""Decoding over a forest: prompts packed into rows without padding, then a row of newest tokens, one per response.

Shape letters: B living responses, P prompts, W tokens of the longest one, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.layers.attention import ForestLayout
from lit_rlhf.models.layers.cached_attention import CachedRows, KeyValue
from lit_rlhf.types import Forest, Segment

PREFILL_TOKENS = 4096
"""Most prompt tokens that are computed at once, unless one prompt alone is longer."""


class ForestDecoder:
    """Hidden states of responses that grow by one token at a time.

    Args:
        backbone: computes in the role that it plays; its layout is the forest.
        prompts: token ids of each prompt, each computed once.
        owners: number of the prompt of each response (B).
        capacity: most tokens of a response that will be appended.

    Attributes:
        states: (B, H) last hidden states of the newest tokens.
    """

    def __init__(
        self, backbone: Backbone, prompts: Sequence[Sequence[int]], owners: Sequence[int], capacity: int
    ) -> None:
        self._decoder = backbone.base.get_decoder()
        self._device = backbone.base.device
        lengths = [len(prompt) for prompt in prompts]
        parts = [self._prefill(part, max(lengths)) for part in _parts(prompts)]
        self.states = torch.cat([states for states, _ in parts])[torch.tensor(owners, device=self._device)]
        layers = [(torch.cat(keys), torch.cat(values)) for keys, values in _by_layer([kv for _, kv in parts])]
        del parts
        self.cache = CachedRows(layers, lengths, owners, capacity)

    def keep(self, living: Sequence[int]) -> list[int]:
        """Go on with some responses alone.

        Args:
            living: their places, ascending.

        Returns:
            Their old places in their new order.
        """
        order = self.cache.keep(living)
        self.states = self.states[torch.tensor(order, device=self._device)]
        return order

    def step(self, tokens: Tensor) -> None:
        """Append tokens (B,) int64; ``states`` become those of the new tokens."""
        self.cache.advance()
        self.states = self._forward(tokens, self.cache.positions(), self.cache)

    def _prefill(self, prompts: Sequence[Sequence[int]], width: int) -> tuple[Tensor, list[KeyValue]]:
        """Hidden states (P, H) of the last tokens; keys and values (P, J, W, D) of each layer."""
        forest = Forest.pack([[Segment(prompt, [False] * len(prompt))] for prompt in prompts]).to(self._device)
        starts = torch.tensor(forest.starts, device=self._device)
        last = torch.tensor(forest.ends, device=self._device)
        # Cells behind a prompt repeat its last token; the mask hides them.
        cells = (starts[:, None] + torch.arange(width, device=self._device)).minimum(last[:, None]).flatten()

        def padded(x: Tensor) -> Tensor:
            """(P, J, W, D) of (1, J, T, D)."""
            rows = x[0].transpose(0, 1).index_select(0, cells)
            return rows.unflatten(0, (-1, width)).transpose(1, 2).contiguous()

        kept: dict[int, KeyValue] = {}
        layout = ForestLayout(
            forest, read="ends", keep=lambda layer, k, v: kept.update({layer: (padded(k), padded(v))})
        )
        states = layout.states_at(last, self._forward(forest.tokens, forest.positions, layout))
        return states, [kept[layer] for layer in sorted(kept)]

    def _forward(self, tokens: Tensor, positions: Tensor, layout: ForestLayout | CachedRows) -> Tensor:
        """Last hidden states of a row of tokens (T,)."""
        return self._decoder(
            input_ids=tokens[None],
            position_ids=positions[None],
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
            use_cache=False,
            forest_layout=layout,
        ).last_hidden_state[0]


def _parts(prompts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Prompts that are computed together."""
    part: list[Sequence[int]] = []
    for prompt in prompts:
        if part and sum(map(len, part)) + len(prompt) > PREFILL_TOKENS:
            yield part
            part = []
        part.append(prompt)
    yield part


def _by_layer(parts: list[list[KeyValue]]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Keys and values of each layer; what is handed on is let go."""
    for layer in range(len(parts[0])):
        pairs = [part[layer] for part in parts]
        yield [keys for keys, _ in pairs], [values for _, values in pairs]
