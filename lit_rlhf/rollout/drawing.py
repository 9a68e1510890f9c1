"""Prompts to rollouts: which random numbers each response gets, so that nothing else decides what it is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.begun import BegunPrompts
from lit_rlhf.rollout.sampling.request import Sampler, SamplingOptions, SamplingRequest
from lit_rlhf.types import Prompt, Rollouts


def draw(
    sampler: Sampler,
    backbone: Backbone,
    prompts: Sequence[Prompt],
    options: SamplingOptions,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stop_tokens: Sequence[int],
    key: str,
    begun: BegunPrompts | None = None,
) -> Rollouts:
    """Let a policy answer prompts.

    Args:
        sampler: draws the responses.
        backbone: the policy, in the role that it plays when this is called.
        prompts: of this rank; there may be none.
        options: how responses are drawn.
        tokenizer: of the policy.
        stop_tokens: ids that end a response.
        key: names the draw, such as the seed and the iteration. The same key and the same rows give the same responses,
            however they are spread over ranks.
        begun: as in :class:`lit_rlhf.rollout.sampling.request.SamplingRequest`.
    """
    backbone.prepare()
    with backbone.whole_weights():
        if not prompts:
            return no_rollouts(backbone.base.device)
        seeds = [seed_of(f"{key}:{name}") for name in response_names(prompts, options.num_responses)]
        return sampler(backbone, SamplingRequest(prompts, options, stop_tokens, tokenizer, seeds, begun))


def response_names(prompts: Sequence[Prompt], num_responses: int) -> list[str]:
    """A name for every response, prompts one after another: the address of its row and a number."""
    seen: Counter[str] = Counter()
    names = []
    for prompt in prompts:
        for _ in range(num_responses):
            names.append(f"{prompt.row}#{seen[prompt.row]}")
            seen[prompt.row] += 1
    return names


def seed_of(name: str) -> int:
    """A seed of 63 bits that depends on the name alone."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def no_rollouts(device: torch.device) -> Rollouts:
    """The rollouts of a rank whose rows were all dropped."""
    none = torch.zeros(0, 1, device=device)
    numbers = none[:, 0].long()
    return Rollouts((), numbers, none.long(), none.bool(), none, numbers.bool())
