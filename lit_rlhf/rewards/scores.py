"""Weighted sums of rewards."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.rewards.function import FunctionReward
from lit_rlhf.rewards.reward import AttachedReward, Reward, Sample, checked_scores


@dataclass
class WeightedReward:
    """One part of the score of a response.

    Args:
        reward: gives the part: a class of ``lit_rlhf.rewards`` or your own; or a function, which is asked as
            :class:`FunctionReward` asks it.
        weight: what it is multiplied by in the sum; 0 = only watched.
        name: in logs; None = that of its function, or of its class: ``exact_answer`` of ``ExactAnswer``.
    """

    reward: Reward | Callable[..., Any]
    weight: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"the weight of a reward is {self.weight}; it must be a finite number")
        if self.name is not None and not self.name.strip():
            raise ValueError("the name of a reward is empty; leave it out for that of its class")
        if inspect.isroutine(self.reward):
            self.reward = FunctionReward(self.reward)

    @property
    def label(self) -> str:
        """The name in logs and messages."""
        if self.name is not None:
            return self.name
        if isinstance(self.reward, FunctionReward):
            return self.reward.name
        return _snake_case(type(self.reward).__name__.removesuffix("Reward") or "reward")


class ScoredSamples(NamedTuple):
    """Scores of samples.

    Args:
        total: weighted sum of the parts, one per sample.
        parts: name of each reward -> its scores, not weighted, one per sample.
    """

    total: list[float]
    parts: dict[str, list[float]]


def reward_names(rewards: Sequence[WeightedReward]) -> list[str]:
    """What rewards are called in logs, in their order.

    Raises:
        ValueError: if there are none, or two have the same name.
    """
    if not rewards:
        raise ValueError("rewards is empty; give at least one reward")
    names = [reward.label for reward in rewards]
    for second, name in enumerate(names):
        if (first := names.index(name)) < second:
            raise ValueError(f"rewards[{first}] and rewards[{second}] are both named '{name}'; give one another `name`")
    return names


def attach_rewards(
    rewards: Sequence[WeightedReward],
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    stop_tokens: Collection[int],
    device: torch.device | None = None,
) -> None:
    """Let those rewards that need the policy get ready; the arguments are those of :meth:`AttachedReward.attach`.

    Raises:
        ValueError: if one does not fit the policy, or two have the same name.
    """
    reward_names(rewards)
    for weighted in rewards:
        if isinstance(weighted.reward, AttachedReward):
            weighted.reward.attach(backbone, tokenizer, stop_tokens, device)


def score_samples(rewards: Sequence[WeightedReward], samples: Sequence[Sample]) -> ScoredSamples:
    """Score samples by each reward, and sum up: ``total = sum of weight * score``.

    Raises:
        ValueError: if a reward gives something other than one finite number per sample; with its name and the row.

    Example:
        >>> def brevity(samples):
        ...     return [-len(sample.response) for sample in samples]
        >>> score_samples([WeightedReward(brevity, weight=0.5)], [Sample("a", "four")])
        ScoredSamples(total=[-2.0], parts={'brevity': [-4.0]})
    """
    names = reward_names(rewards)
    parts = {
        name: checked_scores(weighted.reward(samples), samples, name)
        for name, weighted in zip(names, rewards, strict=True)
    }
    weights = [weighted.weight for weighted in rewards]
    total = [sum(map(mul, weights, scores)) for scores in zip(*parts.values(), strict=True)]
    return ScoredSamples(total, parts)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
