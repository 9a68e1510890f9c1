"""Prompts to scored responses: what every algorithm that learns from rollouts begins with.

Shape letters: L responses of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.metrics.phases import Phases
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.begun import BegunPrompts
from lit_rlhf.models.tokenizers import stop_tokens
from lit_rlhf.rewards.reward import Sample
from lit_rlhf.rewards.samples import samples_of
from lit_rlhf.rewards.scores import WeightedReward, attach_rewards, reward_names, score_samples
from lit_rlhf.rollout.drawing import draw
from lit_rlhf.rollout.sampling.request import Sampler, SamplingOptions
from lit_rlhf.types import Prompt, Rollouts


class ScoredRollouts(NamedTuple):
    """Responses with what the rewards say of them.

    Args:
        rollouts: the responses.
        samples: L, the same as text.
        scores: (L,) float32, weighted sums of the rewards.
        parts: name of each reward -> (L,) float32, not weighted.
    """

    rollouts: Rollouts
    samples: Sequence[Sample]
    scores: Tensor
    parts: dict[str, Tensor]


class Collector:
    """Lets a policy answer prompts, and the rewards judge the answers.

    Args:
        sampler: draws the responses.
        sampling: how.
        rewards: judge them, in a weighted sum.
        seed: of what is drawn.
        phases: told what is being done and how long it takes.

    Raises:
        ValueError: if there is no reward, or two have the same name.
    """

    def __init__(
        self,
        sampler: Sampler,
        sampling: SamplingOptions,
        rewards: Sequence[WeightedReward],
        seed: int,
        phases: Phases,
    ) -> None:
        self.sampler = sampler
        self.sampling = sampling
        self.rewards = rewards
        self.reward_names = reward_names(rewards)
        self.seed = seed
        self.phases = phases
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.stop_tokens: list[int] = []

    def open(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, device: torch.device | None = None) -> None:
        """Get to know the policy; once, before its optimizer is made.

        Args:
            backbone: of the policy.
            tokenizer: of the policy.
            device: where quantised weights of reward models are made.

        Raises:
            ValueError: if nothing would end a response, or a reward does not fit the policy.
        """
        self.tokenizer = tokenizer
        self.stop_tokens = [*dict.fromkeys([*stop_tokens(tokenizer, backbone), *self.sampling.stop_tokens])]
        attach_rewards(self.rewards, backbone, tokenizer, self.stop_tokens, device)

    def __call__(
        self,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        key: str,
        sampling: SamplingOptions | None = None,
        begun: BegunPrompts | None = None,
    ) -> ScoredRollouts:
        """Answer and judge.

        Args:
            backbone: of the policy.
            prompts: of this rank; maybe none.
            key: names the draw, such as the iteration: the same key and rows give the same random numbers.
            sampling: how responses are drawn; None = as in training.
            begun: as in :class:`lit_rlhf.rollout.sampling.request.SamplingRequest`.
        """
        assert self.tokenizer is not None
        with self.phases("rollout"):
            rollouts = draw(
                self.sampler,
                backbone,
                prompts,
                sampling or self.sampling,
                tokenizer=self.tokenizer,
                stop_tokens=self.stop_tokens,
                key=f"{self.seed}:{key}",
                begun=begun,
            )
            self.phases.count("rollout", int(rollouts.response_mask.sum()))
        with self.phases("score"):
            samples = samples_of(rollouts, self.tokenizer)
            total, parts = score_samples(self.rewards, samples)
            columns = {name: rollouts.logprobs.new_tensor(part) for name, part in parts.items()}
        return ScoredRollouts(rollouts, samples, rollouts.logprobs.new_tensor(total), columns)


def watched_responses(scored: ScoredRollouts) -> dict[str, Tensor]:
    """(L,) what is logged of each response: its score, the rewards' parts, and whether it finished."""
    parts = {f"rewards/{name}": part for name, part in scored.parts.items()}
    return {"score": scored.scores, **parts, "finished": scored.rollouts.finished.float()}


def response_rows(scored: ScoredRollouts, kl: Tensor) -> list[dict[str, Any]]:
    """One row per response, for tables and files.

    Args:
        scored: the responses.
        kl: (L,) divergence from the reference over each response, in nats.
    """
    lengths, finished = scored.rollouts.lengths.tolist(), scored.rollouts.finished.tolist()
    return [
        {
            "prompt": sample.prompt,
            "response": sample.response,
            "score": float(scored.scores[number]),
            "rewards": {name: float(part[number]) for name, part in scored.parts.items()},
            "kl": float(kl[number]),
            "length": lengths[number],
            "finished": finished[number],
        }
        for number, sample in enumerate(scored.samples)
    ]
