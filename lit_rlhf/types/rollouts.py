"""Rollouts: what a policy answered to the prompts of one iteration.

Shape letters: L responses, R tokens of the longest one.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lit_rlhf.types.batches import Prompt


class Rollouts(NamedTuple):
    """Responses to prompts, as a sampler drew them.

    Args:
        prompts: L prompts, one per response; several responses to one prompt stand one after another.
        groups: (L,) int64, number of the prompt of each response, from 0, ascending.
        tokens: (L, R) int64, the response's tokens, the one that ended it included; 0 behind them.
        response_mask: (L, R) bool, True = a token of the response. Every response has at least one.
        logprobs: (L, R) float32, log-probabilities of the tokens as they were drawn, in nats: of the weights and the
            precision that the sampler computed with, temperature included; 0 behind the response.
        finished: (L,) bool, True = ended by a stop token or a stop string, False = cut at the length limit.
    """

    prompts: tuple[Prompt, ...]
    groups: Tensor
    tokens: Tensor
    response_mask: Tensor
    logprobs: Tensor
    finished: Tensor

    @property
    def lengths(self) -> Tensor:
        """(L,) int64, tokens of each response."""
        return self.response_mask.sum(1)
