"""Prompts that were computed once and are gone on from: what a sampler computed of them serves the first pass too.

Before an iteration's first optimizer step, sampler and trainer compute the same of a prompt. Its keys and values are
therefore kept with their graph while responses are drawn behind it, and the pass over the responses attends to them.
What is said is the same, to rounding, and so are the gradients.

Shape letters: P prompts, K tokens of all prompts, T tokens of a forest, R tokens of its responses, H hidden size,
J key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from lit_rlhf.models.layers.attention import ForestLayout, Run
from lit_rlhf.models.layers.cached_attention import KeyValue
from lit_rlhf.types import Forest


class BegunPrompts:
    """What the policy computed of prompts, with its graph.

    Attributes:
        layers: number of a layer -> keys and values (J, K, D) of all prompts, one after another.
    """

    def __init__(self) -> None:
        self.layers: dict[int, KeyValue] = {}
        self._ends: Tensor | None = None
        self._number_of: dict[tuple[int, ...], int] = {}
        self._spans: list[tuple[int, int]] = []

    def add(self, prompts: Sequence[Sequence[int]], ends: Tensor, layers: Mapping[int, KeyValue]) -> None:
        """Take in prompts that were computed together.

        Args:
            prompts: token ids of each.
            ends: (P, H) last hidden states of their last tokens.
            layers: number of a layer -> keys and values (J, tokens, D) of all of them, one after another.
        """
        begin = self._spans[-1][1] if self._spans else 0
        stops = list(accumulate(map(len, prompts), initial=begin))
        self._spans += pairwise(stops)
        for prompt in prompts:
            self._number_of[tuple(prompt)] = len(self._number_of)
        self._ends = ends if self._ends is None else torch.cat([self._ends, ends])
        for layer, pair in layers.items():
            known = self.layers.get(layer)
            self.layers[layer] = pair if known is None else _joined(known, pair)

    def covers(self, forest: Forest) -> bool:
        """Whether every tree is one of these prompts with responses of at least one token behind it."""
        if forest.pictures or not self._spans:
            return False
        roots = {number for number, parent in enumerate(forest.parents) if parent < 0}
        leaves = [number for number in range(len(forest.parents)) if number not in roots]
        if {forest.parents[leaf] for leaf in leaves} != roots or not all(forest.lengths[leaf] for leaf in leaves):
            return False
        return all(tokens in self._number_of for tokens in _texts(forest, sorted(roots)))

    def predictors(self, decoder: nn.Module, forest: Forest) -> Tensor:
        """Last hidden states (N, H) of the predictors of a forest that is covered.

        Args:
            decoder: of the role that computed the prompts, with the weights that it had then.
            forest: of which the tokens of responses alone are computed.
        """
        assert self._ends is not None
        runs, rows, places = self._place(forest)
        device = forest.tokens.device
        rows = rows.to(device)
        states = decoder(
            input_ids=forest.tokens[rows][None],
            position_ids=forest.positions[rows][None],
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            forest_layout=ContinuedLayout(self.layers, runs, device),
        ).last_hidden_state.squeeze(0)
        both = torch.cat([self._ends.to(states.dtype), states])
        return both.index_select(0, places.to(device)[forest.predictors])

    def _place(self, forest: Forest) -> tuple[list[Run], Tensor, Tensor]:
        """Where the tokens of responses stand.

        Returns:
            What each response attends to; (R,) row indices of the tokens of responses; (T,) the place of the state of
            each token behind those of the prompts' ends, where it predicts one.
        """
        roots = [number for number, parent in enumerate(forest.parents) if parent < 0]
        number_of = {root: self._number_of[text] for root, text in zip(roots, _texts(forest, roots), strict=True)}
        num_known, num_prompts, at = self._spans[-1][1], len(self._spans), 0
        places = torch.zeros(forest.num_tokens, dtype=torch.int64)
        runs: list[Run] = []
        rows: list[Tensor] = []
        for segment, (start, length) in enumerate(zip(forest.starts, forest.lengths, strict=True)):
            if (parent := forest.parents[segment]) < 0:
                places[start + length - 1] = number_of[segment]  # no other token of a prompt predicts a response
                continue
            places[start : start + length] = torch.arange(num_prompts + at, num_prompts + at + length)
            rows.append(torch.arange(start, start + length))
            known, own = self._spans[number_of[parent]], (num_known + at, num_known + at + length)
            runs.append(Run(at, at + length, (known, own)))
            at += length
        return runs, torch.cat(rows), places


class ContinuedLayout(ForestLayout):
    """Tokens of responses as queries; as keys those of known prompts, and behind them their own.

    Args:
        known: number of a layer -> keys and values (J, K, D) of the prompts.
        runs: cover the tokens of all responses in order; the first span of each lies among the prompts.
        device: of the tokens.
    """

    def __init__(self, known: Mapping[int, KeyValue], runs: Sequence[Run], device: torch.device) -> None:
        self._begin(tuple(runs), device)
        self._known = known

    def passing(self, attention: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (1, J, K + R, D) that queries of a layer attend to."""
        known_key, known_value = self._known[cast(int, attention.layer_idx)]
        return torch.cat([known_key[None], key], dim=2), torch.cat([known_value[None], value], dim=2)


def _joined(first: KeyValue, second: KeyValue) -> KeyValue:
    return torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]], dim=1)


def _texts(forest: Forest, segments: Sequence[int]) -> list[tuple[int, ...]]:
    """Token ids of some segments."""
    tokens, starts = forest.tokens.tolist(), forest.starts
    return [tuple(tokens[starts[number] : starts[number] + forest.lengths[number]]) for number in segments]
