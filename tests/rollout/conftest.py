"""What the tests of the samplers share: a backbone that has opinions, prompts, and requests."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rollout.sampling import SamplingOptions, SamplingRequest
from lit_rlhf.types import Forest, Prompt, Segment

LENGTHS = (1, 40, 5, 12)


def make_prompt(tokens, row="rows.jsonl:0"):
    return Prompt(tuple(tokens), "", (), {}, row, "rows")


@pytest.fixture
def sampled_backbone(tiny_llama):
    """Factory of backbones whose weights, adapter included, are large enough to prefer some tokens to others."""

    def make(folder=None, scale=0.1, **options):
        config = BackboneConfig(str(folder or tiny_llama()), lora=LoraOptions(r=4, alpha=8), **options)
        backbone = build_backbone(config)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "lora_" in name:
                    noise = scale * torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(noise.to(parameter.dtype))
        return backbone

    return make


@pytest.fixture
def make_request(tiny_tokenizer):
    """Factory of requests for prompts of very different lengths; seeds are counted from 100."""

    def make(lengths=LENGTHS, stop_tokens=(2,), seeds=None, prompts=None, **options):
        if prompts is None:
            prompts = [
                make_prompt([7 + (31 * number + 11 * at) % 290 for at in range(length)], f"rows.jsonl:{number}")
                for number, length in enumerate(lengths)
            ]
        settings = SamplingOptions(**{"num_responses": 1, "max_new_tokens": 12, **options})
        seeds = seeds or range(100, 100 + len(prompts) * settings.num_responses)
        return SamplingRequest(prompts, settings, list(stop_tokens), tiny_tokenizer, list(seeds))

    return make


@pytest.fixture
def trainer_logprobs():
    """What training says of rollouts: log-probabilities of the packed forest, in the order of the response mask."""

    @torch.no_grad()
    def compute(backbone, rollouts, temperature=1.0):
        trees = []
        for prompt, tokens, mask in zip(rollouts.prompts, rollouts.tokens, rollouts.response_mask, strict=True):
            response = tokens[mask].tolist()
            trees.append(
                [
                    Segment(prompt.tokens, [False] * len(prompt.tokens)),
                    Segment(response, [True] * len(response), 0),
                ]
            )
        return backbone.token_logprobs(Forest.pack(trees), temperature=temperature).logprobs

    return compute


def responses_of(rollouts):
    """Token ids of each response."""
    return [tokens[mask].tolist() for tokens, mask in zip(rollouts.tokens, rollouts.response_mask, strict=True)]


@pytest.fixture
def responses():
    """Reads the token ids of each response out of rollouts."""
    return responses_of
