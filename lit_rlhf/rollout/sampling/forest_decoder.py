"""Decoding over a forest: prompts packed into rows without padding, then a row of newest tokens, one per response.

Shape letters: B living responses, P prompts, W tokens of the longest one, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.begun import BegunPrompts
from lit_rlhf.models.layers.attention import ForestLayout
from lit_rlhf.models.layers.cached_attention import CachedRows, KeyValue
from lit_rlhf.models.layers.step_parts import StepParts
from lit_rlhf.types import Forest, Segment

PREFILL_TOKENS = 4096
"""Most prompt tokens that are computed at once, unless one prompt alone is longer."""


class ForestDecoder:
    """Hidden states of responses that grow by one token at a time.

    Args:
        backbone: computes in the role that it plays; its layout is the forest.
        prompts: token ids of each prompt, each computed once.
        owners: number of the prompt of each response (B), ascending.
        capacity: most tokens of a response that will be appended.
        parts: what the layers compute a step with; shared by all decoders of one role while nothing is trained.
        begun: takes in what is computed of the prompts, with its graph; None = nobody asks for it.

    Attributes:
        states: (B, H) last hidden states of the newest tokens.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        capacity: int,
        parts: StepParts | None = None,
        begun: BegunPrompts | None = None,
    ) -> None:
        self._begun = begun
        self._decoder = backbone.base.get_decoder()
        self._device = backbone.base.device
        computed = [self._prefill(part) for part in _parts(prompts)]
        self.states = torch.cat([states for states, _ in computed])[torch.tensor(owners, device=self._device)]
        layers = _by_layer([kept for _, kept in computed])
        self.cache = CachedRows(layers, [len(prompt) for prompt in prompts], owners, capacity, parts)

    def keep(self, living: Sequence[int]) -> None:
        """Go on with some responses alone; their order stays.

        Args:
            living: their places, ascending.
        """
        self.cache.keep(living)
        self.states = self.states[torch.tensor(living, device=self._device)]

    def step(self, tokens: Tensor) -> None:
        """Append tokens (B,) int64; ``states`` become those of the new tokens."""
        self.cache.advance()
        self.states = self._forward(tokens, self.cache.positions(), self.cache)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, dict[int, KeyValue]]:
        """Hidden states (P, H) of the last tokens; keys and values (J, T, D) of each layer."""
        forest = Forest.pack([[Segment(prompt, [False] * len(prompt))] for prompt in prompts]).to(self._device)
        last = torch.tensor(forest.ends, device=self._device)
        kept: dict[int, KeyValue] = {}
        layout = ForestLayout(forest, read="ends", keep=lambda layer, k, v: kept.update({layer: (k[0], v[0])}))
        with torch.set_grad_enabled(self._begun is not None):
            states = layout.states_at(last, self._forward(forest.tokens, forest.positions, layout))
            if self._begun is not None:
                self._begun.add(prompts, states, kept)
        return states.detach(), {layer: (keys.detach(), values.detach()) for layer, (keys, values) in kept.items()}

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


def _by_layer(parts: list[dict[int, KeyValue]]) -> Iterator[KeyValue]:
    """Keys and values of each layer over all parts; what is handed on is let go."""
    for layer in sorted(parts[0]):
        keys, values = zip(*(part.pop(layer) for part in parts), strict=True)
        yield torch.cat(keys, dim=1), torch.cat(values, dim=1)
