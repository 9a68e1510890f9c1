"""Responses to held-out prompts: what they score, and how far the policy has gone to write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlhf.losses.kl import kl_k1
from lit_rlhf.metrics.rollouts import RolloutMeter
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.rollout.collecting import Collector, response_rows, watched_responses
from lit_rlhf.rollout.measuring import measure_policy
from lit_rlhf.types import Prompt


def held_out(
    collector: Collector,
    backbone: Backbone,
    prompts: Sequence[Prompt],
    meter: RolloutMeter,
    *,
    key: str,
    token_budget: int,
) -> list[dict[str, Any]]:
    """Answer prompts that are not learnt from.

    Args:
        collector: answers and judges.
        backbone: of policy and reference.
        prompts: of this rank; maybe none.
        meter: takes in what is found.
        key: names the draw; the same each time, so that differences are the policy's.
        token_budget: most tokens of one forward pass.

    Returns:
        One row per response: prompt, response, score, rewards, kl, length and finished.
    """
    scored = collector(backbone, prompts, key)
    temperature = collector.sampling.temperature or 1.0
    measures = measure_policy(backbone, scored.rollouts, token_budget=token_budget, temperature=temperature)
    mask = scored.rollouts.response_mask
    kl = kl_k1(measures.logprobs.flatten(), measures.ref_logprobs.flatten()).view_as(measures.logprobs)
    meter.add(mask, watched_responses(scored), {"kl": kl, "entropy": measures.entropy})
    return response_rows(scored, (kl * mask).sum(1))
