"""A sampler by transformers' own ``generate``, for models whose decoding only it knows.

Slower than :class:`lit_rlhf.rollout.sampling.cached_sampler.CachedSampler`: a prompt is computed for each of its
responses, and rows that ended are computed on until the last one ends. Its responses share one random state, so a
response depends on what is drawn beside it: the seed of a batch is that of its first response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.loading import evaluating
from lit_rlhf.rollout.sampling.request import SamplingRequest, check_request
from lit_rlhf.rollout.sampling.stopping import Stopping
from lit_rlhf.types import Forest, Prompt, Rollouts, Segment


class GenerateSampler:
    """Draws by ``generate``; the log-probabilities are computed afterwards, on the forest of what was drawn.

    Args:
        max_rows: most responses that are drawn at once.
        cache: ``dynamic`` grows with the responses; ``static`` has room for the longest from the start, and on a GPU
            transformers then compiles the decoding step by itself, anew for every shape of a batch.
    """

    is_exact = True

    def __init__(self, max_rows: int = 64, cache: Literal["dynamic", "static"] = "dynamic") -> None:
        if max_rows < 1 or cache not in ("dynamic", "static"):
            raise ValueError(
                f"sampler.max_rows is {max_rows} and cache is {cache!r}; the first is at least 1, the second is "
                "'dynamic' or 'static'"
            )
        self.max_rows = max_rows
        self.cache = cache

    @torch.no_grad()
    def __call__(self, backbone: Backbone, request: SamplingRequest) -> Rollouts:
        """Draw one response per seed; see :class:`lit_rlhf.rollout.sampling.request.Sampler`.

        Raises:
            ValueError: if a prompt is empty, there is no stop token, or the number of seeds does not fit.
            FloatingPointError: if log-probabilities are not finite, naming the prompt's address.
        """
        options = request.options

        def draw(prompts: list[Prompt], seed: int) -> list[list[int]]:
            stops = [*request.stop_tokens, *options.stop_tokens]
            return backbone.generate(
                [prompt.tokens for prompt in prompts],
                options.max_new_tokens,
                stop_tokens=stops,
                temperature=options.temperature,
                seed=seed,
                cache_implementation=None if self.cache == "dynamic" else self.cache,
                pictures=[prompt.pictures for prompt in prompts],
            )

        return rollouts_by(draw, backbone, request, self.max_rows)


def rollouts_by(
    draw: Callable[[list[Prompt], int], list[list[int]]],
    backbone: Backbone,
    request: SamplingRequest,
    max_rows: int,
) -> Rollouts:
    """Rollouts that something else draws: cut where they end, with the log-probabilities that the trainer gives them.

    Args:
        draw: gives a response to each of some prompts, from one seed.
        backbone: the policy.
        request: what is wanted.
        max_rows: most responses that are drawn at once.

    Raises:
        ValueError: if a prompt is empty, there is no stop token, or the number of seeds does not fit.
        FloatingPointError: if log-probabilities are not finite, naming the prompt's address.
    """
    check_request(request)
    options, device = request.options, backbone.base.device
    stopping = Stopping([*request.stop_tokens, *options.stop_tokens], options.stop_strings, request.tokenizer)
    prompts = [prompt for prompt in request.prompts for _ in range(options.num_responses)]
    responses: list[list[int]] = []
    logprobs: list[float] = []
    for start in range(0, len(prompts), max_rows):
        asked = prompts[start : start + max_rows]
        drawn = [response[: stopping.end(response) or len(response)] for response in draw(asked, request.seeds[start])]
        responses += drawn
        logprobs += _logprobs(backbone, asked, drawn, options.temperature or 1.0)
    mask = torch.zeros(len(prompts), max(map(len, responses)), dtype=torch.bool, device=device)
    for row, response in zip(mask, responses, strict=True):
        row[: len(response)] = True
    rollouts = Rollouts(
        prompts=tuple(prompts),
        groups=torch.arange(len(prompts), device=device) // options.num_responses,
        tokens=torch.zeros(mask.shape, dtype=torch.int64, device=device),
        response_mask=mask,
        logprobs=torch.zeros(mask.shape, device=device),
        finished=torch.tensor([stopping.end(response) is not None for response in responses], device=device),
    )
    rollouts.tokens[mask] = torch.tensor([token for response in responses for token in response], device=device)
    rollouts.logprobs[mask] = torch.tensor(logprobs, device=device)
    for row in (~rollouts.logprobs.isfinite()).any(1).nonzero()[:1, 0].tolist():
        raise FloatingPointError(f"{prompts[row].row}: the log-probabilities of the response are not finite")
    return rollouts


def _logprobs(
    backbone: Backbone, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]], temperature: float
) -> list[float]:
    """Log-probability of every token of the responses, one response after another."""
    trees = [
        [
            Segment(prompt.tokens, [False] * len(prompt.tokens), pictures=prompt.pictures),
            Segment(response, [True] * len(response), 0),
        ]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    forest = Forest.pack(trees).to(backbone.base.device)
    with evaluating(backbone):
        return backbone.token_logprobs(forest, temperature=temperature).logprobs.tolist()
