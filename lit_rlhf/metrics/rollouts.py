"""What is watched about rollouts: of responses and of their tokens, over all ranks.

Shape letters: L responses, R tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_rlhf.losses.rounding import without_rounding
from lit_rlhf.ranks import gather_rows

PER_RESPONSE = ("kl", "kl_k3")
"""Quantities of tokens that are summed over a response; all others are averaged over tokens."""


class RolloutMeter:
    """Means over responses and their tokens since the last time they were computed.

    Example:
        >>> meter = RolloutMeter()
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> meter.add(mask, {"score": torch.tensor([1.0, 3.0])}, {"entropy": torch.tensor([[1.0, 2.0], [3.0, 9.0]])})
        >>> {name: float(value) for name, value in meter.compute().items()}
        {'num_responses': 2.0, 'length': 1.5, 'score': 2.0, 'score_std': 1.0, 'entropy': 2.0}
    """

    def __init__(self) -> None:
        self._tables: list[Tensor] = []
        self._of_responses: tuple[str, ...] = ()
        self._of_tokens: tuple[str, ...] = ()

    def add(self, response_mask: Tensor, of_responses: Mapping[str, Tensor], of_tokens: Mapping[str, Tensor]) -> None:
        """Take in responses of this rank.

        Args:
            response_mask: (L, R) bool, True = a token of a response.
            of_responses: name -> (L,). Their spread is told of ``score``.
            of_tokens: name -> (L, R); cells behind a response are not read. ``kl`` and ``kl_k3`` are summed over each
                response. Their spread is told of ``advantages``; of ``values`` and ``returns`` together, how much of
                the spread of the returns the values explain.
        """
        self._of_responses, self._of_tokens = ("length", *of_responses), tuple(of_tokens)
        known = [torch.where(response_mask, values, 0.0).double() for values in of_tokens.values()]
        columns = [response_mask.sum(1).double(), *(column.double() for column in of_responses.values())]
        columns += [values.sum(1) for values in known]
        columns += [values.square().sum(1) for values in (*known, self._errors(known, response_mask))]
        self._tables.append(torch.stack(columns, dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Float32 scalars by name, the same on every rank; nothing where no rank had a response. Begins anew."""
        if not self._tables:
            return {}
        everyone = gather_rows(torch.cat(self._tables))[0]
        self._tables = []
        if not len(everyone):
            return {}
        ours, tokens = len(self._of_responses), len(self._of_tokens)
        responses, sums, squares = everyone.split([ours, tokens, tokens + 1], dim=1)
        num_tokens = responses[:, 0].sum().clamp(min=1.0)
        found = {
            "num_responses": responses.new_tensor(len(responses)),
            **dict(zip(self._of_responses, responses.mean(0), strict=True)),
        }
        if "score" in found:
            found["score_std"] = responses[:, self._of_responses.index("score")].std(correction=0)
        means = sums.sum(0) / num_tokens
        spreads = squares[:, :-1].sum(0) / num_tokens - means.square()
        for index, name in enumerate(self._of_tokens):
            found[name] = sums[:, index].mean() if name in PER_RESPONSE else means[index]
        if "advantages" in self._of_tokens:
            found["advantages_std"] = spreads[self._of_tokens.index("advantages")].clamp(min=0.0).sqrt()
        if {"values", "returns"} <= {*self._of_tokens}:
            gap = found["returns"] - found["values"]
            unexplained = squares[:, -1].sum() / num_tokens - gap.square()
            spread = without_rounding(spreads[self._of_tokens.index("returns")], found["returns"])
            explained = 1.0 - unexplained / torch.where(spread > 0, spread, 1.0)
            found["explained_variance"] = torch.where(spread > 0, explained, 0.0)
        return {name: value.float() for name, value in found.items()}

    def _errors(self, known: list[Tensor], response_mask: Tensor) -> Tensor:
        """(L, R) by how much the returns differ from the values; 0 where there are none."""
        by_name = dict(zip(self._of_tokens, known, strict=True))
        if {"values", "returns"} <= by_name.keys():
            return by_name["returns"] - by_name["values"]
        return torch.zeros_like(response_mask, dtype=torch.float64)
