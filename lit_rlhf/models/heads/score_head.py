"""The score head of a reward model: hidden states to one number per objective.

Shape letters: H hidden size, K objectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.models.heads.float32 import without_cast


class ScoreHead(nn.Linear):
    """A linear layer in float32, whatever the backbone computes in: in bfloat16 scores near 8 lie 0.03 apart.

    It starts near 0 (normal with standard deviation 1 / sqrt(H + 1), Stiennon et al., arXiv 2009.01325, appendix), and
    knows how scores spread on the validation data, so that others can begin from a known scale.

    Args:
        hidden_size: H.
        objectives: name -> weight in the score; one output each.
        bias: only for a head that came with one.

    Attributes:
        mean: () mean score over the validation data; NaN until measured.
        std: () standard deviation of the same scores.
        num_responses: () how many they were.

    Raises:
        ValueError: if there is no objective, or every weight is 0.

    Example:
        >>> head = ScoreHead(4, {"helpful": 1.0, "short": 0.5})
        >>> head(torch.zeros(3, 4)).shape, head.combine(torch.tensor([[2.0, 4.0]]))
        (torch.Size([3, 2]), tensor([4.]))
    """

    def __init__(self, hidden_size: int, objectives: Mapping[str, float], bias: bool = False) -> None:
        if not any(objectives.values()) or not all(map(math.isfinite, objectives.values())):
            raise ValueError(f"objectives are {dict(objectives)}; give at least one name with a weight other than 0")
        super().__init__(hidden_size, len(objectives), bias=bias, dtype=torch.float32)
        self.objectives = dict(objectives)
        self.mean: Tensor
        self.std: Tensor
        self.num_responses: Tensor
        self.register_buffer("mean", torch.tensor(math.nan))
        self.register_buffer("std", torch.tensor(math.nan))
        self.register_buffer("num_responses", torch.tensor(0))

    def reset_parameters(self) -> None:
        """Begin near 0."""
        nn.init.normal_(self.weight, std=1.0 / math.sqrt(self.in_features + 1))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Scores (..., K) in float32 of hidden states (..., H), also under autocast."""
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.float())

    def combine(self, scores: Tensor) -> Tensor:
        """(L,) the weighted sum of the objectives' scores (L, K)."""
        weights = torch.tensor(list(self.objectives.values()), device=scores.device)
        return scores[:, 0] if len(weights) == 1 and float(weights) == 1.0 else scores @ weights

    @torch.no_grad()
    def collapsed(self) -> ScoreHead:
        """The same score from one output: the weighted sum of linear functions is linear."""
        whole = ScoreHead(self.in_features, {"score": 1.0}, bias=self.bias is not None)
        whole.weight.copy_(self.combine(self.weight.T)[None])
        if self.bias is not None:
            whole.bias.copy_(self.combine(self.bias[None]))
        whole.measure(self.mean, self.std, self.num_responses)
        return whole

    @property
    def is_measured(self) -> bool:
        """Whether mean and spread are known."""
        return bool(torch.isfinite(self.mean) & torch.isfinite(self.std) & (self.std > 0))

    def measure(self, mean: Tensor | float, std: Tensor | float, num_responses: Tensor | int) -> None:
        """Remember how scores spread."""
        self.mean.fill_(mean)
        self.std.fill_(std)
        self.num_responses.fill_(num_responses)

    def normalise(self, scores: Tensor) -> Tensor:
        """Scores in standard deviations from the mean of the validation data.

        Raises:
            ValueError: if that has not been measured.
        """
        if not self.is_measured:
            raise ValueError(
                "this reward model does not know how its scores spread, so they cannot be normalised: "
                "train it with data.validation set"
            )
        return (scores - self.mean) / self.std

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move between devices, but stay in float32."""
        return super()._apply(without_cast(fn), recurse)
