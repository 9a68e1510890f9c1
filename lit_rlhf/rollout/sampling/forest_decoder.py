"""Decoding over a forest: prompts packed into rows without padding, then a row of newest tokens, one per response.

Shape letters: B living responses, P prompts, W tokens of the longest one, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.begun import BegunPrompts
from lit_rlhf.models.layers.attention import ForestLayout
from lit_rlhf.models.layers.cached_attention import CachedRows, KeyValue
from lit_rlhf.models.layers.step_parts import StepParts
from lit_rlhf.types import Forest, Picture, Segment

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
        pictures: of each prompt; empty = none has any.
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
        pictures: Sequence[tuple[Picture, ...]] = (),
        begun: BegunPrompts | None = None,
    ) -> None:
        self._backbone = backbone
        self._begun = begun
        self._decoder = backbone.base.get_decoder()
        self._device = backbone.base.device
        self._ahead: list[int] = []
        seen = pictures or [()] * len(prompts)
        roots = [Segment(own, [False] * len(own), -1, shown) for own, shown in zip(prompts, seen, strict=True)]
        self._prefilled: list[tuple[int, dict[str, Any]]] = []
        computed = [self._prefill(part) for part in _parts(roots)]
        rows = torch.tensor(owners, device=self._device)
        self.states = torch.cat([states for states, _ in computed])[rows]
        self._offsets = torch.tensor(self._ahead, device=self._device)[rows]
        self._looking = backbone.eyes.looking(self._prefilled, owners) if any(seen) else None
        self._prefilled.clear()
        layers = _by_layer([kept for _, kept in computed])
        self.cache = CachedRows(layers, [len(prompt) for prompt in prompts], owners, capacity, parts)

    def keep(self, living: Sequence[int]) -> None:
        """Go on with some responses alone; their order stays.

        Args:
            living: their places, ascending.
        """
        self.cache.keep(living)
        if self._looking is not None:
            self._looking.keep(living)
        rows = torch.tensor(living, device=self._device)
        self.states, self._offsets = self.states[rows], self._offsets[rows]

    def step(self, tokens: Tensor) -> None:
        """Append tokens (B,) int64; ``states`` become those of the new tokens."""
        self.cache.advance()
        positions = self.cache.positions() + self._offsets
        inputs = {"input_ids": tokens[None], "position_ids": positions[None]}
        inputs |= {} if self._looking is None else self._looking.inputs()
        self.states = self._forward(inputs, self.cache)

    def _prefill(self, prompts: Sequence[Segment]) -> tuple[Tensor, dict[int, KeyValue]]:
        """Hidden states (P, H) of the last tokens; keys and values (J, T, D) of each layer."""
        forest = Forest.pack([prompt] for prompt in prompts).to(self._device)
        self._ahead += self._backbone.eyes.ahead(forest) if forest.pictures else [0] * len(prompts)
        last = torch.tensor(forest.ends, device=self._device)
        kept: dict[int, KeyValue] = {}

        def keep(layer: int, keys: Tensor, values: Tensor) -> None:
            kept[layer] = (keys.squeeze(0), values.squeeze(0))

        layout = ForestLayout(forest, read="ends", keep=keep)
        with torch.set_grad_enabled(self._begun is not None):
            inputs = self._backbone.decoder_inputs(forest)
            states = layout.states_at(last, self._forward(inputs, layout))
            if self._begun is not None:
                self._begun.add([prompt.tokens for prompt in prompts], states, kept)
        self._prefilled.append((len(prompts), inputs))
        return states.detach(), {layer: (keys.detach(), values.detach()) for layer, (keys, values) in kept.items()}

    def _forward(self, inputs: dict[str, Any], layout: ForestLayout | CachedRows) -> Tensor:
        """Last hidden states of a row."""
        return self._decoder(
            **inputs,
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._device),
            use_cache=False,
            forest_layout=layout,
        ).last_hidden_state.squeeze(0)


def _parts(prompts: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Prompts that are computed together."""
    part: list[Segment] = []
    for prompt in prompts:
        if part and sum(len(other.tokens) for other in part) + len(prompt.tokens) > PREFILL_TOKENS:
            yield part
            part = []
        part.append(prompt)
    yield part


def _by_layer(parts: list[dict[int, KeyValue]]) -> Iterator[tuple[int, KeyValue]]:
    """Number, keys and values of each layer over all parts; what is handed on is let go."""
    for layer in sorted(parts[0]):
        keys, values = zip(*(part.pop(layer) for part in parts), strict=True)
        yield layer, (torch.cat(keys, dim=1), torch.cat(values, dim=1))
