"""The reward model that a critic may begin as."""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlhf.models.heads.critic import RewardStart
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.scores import WeightedReward


def reward_start(rewards: Sequence[WeightedReward]) -> RewardStart | None:
    """The first reward model among rewards that was given by its name, and how its scores are read; None without one.

    Args:
        rewards: of an algorithm. Those of weight 0 are only watched.
    """
    for weighted in rewards:
        reward = weighted.reward
        if weighted.weight and isinstance(reward, ModelReward) and isinstance(reward.model, str):
            return RewardStart(reward.model, weighted.weight, reward.normalise is not False)
    return None
