"""Answers by transformers' own ``generate``, for commands and for models whose decoding only it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from lit_rlhf.models.loading import evaluating
from lit_rlhf.types import Picture

if TYPE_CHECKING:
    from lit_rlhf.models.backbone import Backbone


@torch.no_grad()
def generate(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop_tokens: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    cache_implementation: str | None = None,
    pictures: Sequence[Sequence[Picture]] = (),
) -> list[list[int]]:
    """Answers of the current role to tokenised prompts. The random state of training is left as it was.

    Args:
        backbone: computes in the role that it plays.
        prompts: token ids of each prompt; maybe none.
        max_new_tokens: most tokens of an answer.
        stop_tokens: ids that end an answer; the one that did is its last token.
        temperature: of the samples; 0 takes the likeliest token each time.
        top_p: smallest probability mass that tokens are drawn from, 0-1.
        seed: of the samples; None goes on from the global random state.
        cache_implementation: of the key-value cache, by its name in transformers; None = its default.
        pictures: of each prompt; empty = none has any.

    Returns:
        The new token ids of each answer.

    Raises:
        ValueError: if a prompt is empty, there is no stop token, or pictures do not fit the model.
    """
    if not all(len(prompt) for prompt in prompts) or not stop_tokens:
        raise ValueError("generate needs prompts of at least one token and at least one stop token")
    backbone.prepare()
    if not prompts:
        with backbone.whole_weights():  # other ranks gather theirs
            return []
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    options = {"max_new_tokens": max_new_tokens, "cache_implementation": cache_implementation, **sampling}
    groups = backbone.eyes.together(pictures) if any(pictures) else [list(range(len(prompts)))]
    answers: dict[int, list[int]] = {}
    with evaluating(backbone), backbone.whole_weights(), torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for rows in groups:
            seen = [picture for row in rows if pictures for picture in pictures[row]]
            drawn = _drawn(backbone, [prompts[row] for row in rows], seen, list(stop_tokens), options)
            answers |= zip(rows, drawn, strict=True)
    return [answers[row] for row in range(len(prompts))]


def _drawn(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    pictures: Sequence[Picture],
    stop_tokens: list[int],
    options: dict[str, Any],
) -> list[list[int]]:
    """Answers to prompts that the model takes together, with the pictures of all of them."""
    device = backbone.base.device
    width = max(len(prompt) for prompt in prompts)
    pad = stop_tokens[0]
    tokens = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    output = cast(Any, backbone.base).generate(
        **(backbone.eyes.own_inputs(tokens, mask, pictures) if pictures else inputs),
        pad_token_id=pad,
        eos_token_id=stop_tokens,
        use_cache=True,
        synced_gpus=False,  # the weights are whole: ranks need not wait for each other's longest answer
        suppress_tokens=backbone.undrawn_tokens or None,
        **options,
    )
    return [_until_stop(row, set(stop_tokens)) for row in output[:, width:].tolist()]


def _until_stop(tokens: list[int], stops: set[int]) -> list[int]:
    for number, token in enumerate(tokens):
        if token in stops:
            return tokens[: number + 1]
    return tokens
