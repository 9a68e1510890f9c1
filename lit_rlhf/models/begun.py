"""Prompts that were computed once and are gone on from: what a sampler computed of them serves the first pass too.

Before an iteration's first optimizer step, sampler and trainer compute the same of a prompt. Its keys and values are
therefore kept with their graph while responses are drawn behind it, and the pass over the responses attends to them.
What is said is the same, to rounding, and so are the gradients.

Shape letters: P prompts, K tokens of all prompts, T tokens of a forest, R tokens of its responses, H hidden size,
J key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

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
        self._spans += zip(stops, stops[1:], strict=False)
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

    def continued(self, forest: Forest) -> Continued:
        """How a forest that is covered is computed from here on."""
        starts, roots = forest.starts, [number for number, parent in enumerate(forest.parents) if parent < 0]
        number_of = {
            root: self._number_of[text] for root, text in zip(roots, _texts(forest, roots), strict=True)
        }
        num_known, num_prompts = self._spans[-1][1], len(self._spans)
        places = torch.empty(forest.num_tokens, dtype=torch.int64)
        runs: list[Run] = []
        rows: list[Tensor] = []
        at = 0
        for segment, (start, length, parent) in enumerate(zip(starts, forest.lengths, forest.parents, strict=True)):
            if parent < 0:
                places[start + length - 1] = number_of[segment]  # no other token of a prompt predicts a response
                continue
            known, new = self._spans[number_of[parent]], (num_known + at, num_known + at + length)
            places[start : start + length] = torch.arange(num_prompts + at, num_prompts + at + length)
            rows.append(torch.arange(start, start + length))
            runs.append(Run(at, at + length, (known, new)))
            at += length
        device = forest.tokens.device
        layout = ContinuedLayout(self.layers, runs, device)
        assert self._ends is not None
        return Continued(self._ends, torch.cat(rows).to(device), places.to(device)[forest.predictors], layout)


class Continued:
    """The responses of a forest, behind prompts that are known.

    Args:
        ends: (P, H) last hidden states of the last tokens of the known prompts.
        rows: (R,) row indices of the tokens of responses.
        predictors: (N,) of each scored token, the place of the token before it among ``ends`` and then ``rows``.
        layout: of the tokens of responses.
    """

    def __init__(self, ends: Tensor, rows: Tensor, predictors: Tensor, layout: ContinuedLayout) -> None:
        self.rows = rows
        self.layout = layout
        self._ends, self._predictors = ends, predictors

    def read(self, states: Tensor) -> Tensor:
        """(N, H) last hidden states of the predictors, from those (R, H) of the tokens of responses."""
        return torch.cat([self._ends.to(states.dtype), states]).index_select(0, self._predictors)


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

    def passing(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (1, J, K + R, D) that queries of a layer attend to."""
        known_key, known_value = self._known[layer]
        return torch.cat([known_key[None], key], dim=2), torch.cat([known_value[None], value], dim=2)


def _joined(first: KeyValue, second: KeyValue) -> KeyValue:
    return torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]], dim=1)


def _texts(forest: Forest, segments: Sequence[int]) -> list[tuple[int, ...]]:
    """Token ids of some segments."""
    tokens, starts = forest.tokens.tolist(), forest.starts
    return [tuple(tokens[starts[number] : starts[number] + forest.lengths[number]]) for number in segments]
