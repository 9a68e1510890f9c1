"""All that an iteration learns from: of PPO, and of what does without a critic.

Shape letters: L responses, R tokens of the longest one.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lit_rlhf.types import Rollouts


class PolicyExperience(NamedTuple):
    """All that an iteration without a critic learns from: of every token of every response, (L, R) float32 each.

    Args:
        rollouts: the responses.
        logprobs: under the policy that wrote them, by the trainer.
        ref_logprobs: under the reference.
        advantages: how much better each token did than expected.
        importance: weights that correct for a sampler that computes otherwise than the trainer.
    """

    rollouts: Rollouts
    logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    importance: Tensor


class Experience(NamedTuple):
    """All that an iteration learns from: of every token of every response, (L, R) float32 each.

    Args:
        rollouts: the responses.
        logprobs: under the policy that wrote them, by the trainer.
        ref_logprobs: under the reference.
        values: of the critic, before the update.
        advantages: whitened, where that is asked for.
        returns: what the values are to become.
        importance: weights that correct for a sampler that computes otherwise than the trainer.
    """

    rollouts: Rollouts
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    importance: Tensor
