"""Routers: which modules they are, what they say, and how to make them choose experts that were chosen before.

A new family is one row of :data:`FAMILIES`: how the output of its router is read, and how it is written anew for given
experts. Nothing else of this package knows one family from another. Models whose routers are in no row are trained
like any other; only what needs to know their routers is refused.

Shape letters: T tokens, E experts of a layer, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Routed(NamedTuple):
    """What a router said of the tokens of one pass.

    Args:
        logits: (T, E), before any softmax or sigmoid.
        experts: (T, k) int64, those that it chose by itself.
        probabilities: logits to (T, E) float32 probabilities, which sum to one.
    """

    logits: Tensor
    experts: Tensor
    probabilities: Callable[[Tensor], Tensor]


class Family(NamedTuple):
    """How the routers of a family speak.

    Args:
        scores: logits (T, E) to the scores that weights are made of, float32.
        read: a router and its output to logits (T, E) and experts (T, k).
        write: a router, its output, scores (T, E) and experts (T, k) to the output that has these experts.
    """

    scores: Callable[[Tensor], Tensor]
    read: Callable[[Any, Any], tuple[Tensor, Tensor]]
    write: Callable[[Any, Any, Tensor, Tensor], Any]

    def probabilities(self, logits: Tensor) -> Tensor:
        """(T, E) scores that sum to one: softmax once, or sigmoids divided by their sum (DeepSeek-V3, eq. 18-20)."""
        scores = self.scores(logits)
        return scores if self.scores is _softmax else scores / scores.sum(-1, keepdim=True)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1, dtype=torch.float32)


def _sigmoid(logits: Tensor) -> Tensor:
    return logits.float().sigmoid()


def _logits_first(router: Any, output: Any) -> tuple[Tensor, Tensor]:
    return output[0], output[2]


def _normed(router: Any, output: Any, scores: Tensor, experts: Tensor) -> Any:
    weights = scores.gather(1, experts)
    return output[0], (weights / weights.sum(-1, keepdim=True)).to(output[1].dtype), experts


def _normed_if_asked(router: Any, output: Any, scores: Tensor, experts: Tensor) -> Any:
    if router.norm_topk_prob:
        return _normed(router, output, scores, experts)
    return output[0], scores.gather(1, experts).to(output[1].dtype), experts


def _scaled(router: Any, output: Any, scores: Tensor, experts: Tensor) -> Any:
    return output[0], scores.gather(1, experts) * router.routed_scaling_factor, experts


def _normed_and_scaled(router: Any, output: Any, scores: Tensor, experts: Tensor) -> Any:
    logits, weights, _ = _normed_if_asked(router, output, scores, experts)
    return logits, weights * router.routed_scaling_factor, experts


def _logits_last(router: Any, output: Any) -> tuple[Tensor, Tensor]:
    return output[1], output[1].detach().topk(router.top_k, dim=1).indices


def _all_but_zeroed(router: Any, output: Any, scores: Tensor, experts: Tensor) -> Any:
    kept = torch.zeros_like(scores).scatter(1, experts, scores.gather(1, experts))
    return kept.to(output[0].dtype), output[1]


FAMILIES: dict[str, Family] = {
    "MixtralTopKRouter": Family(_softmax, _logits_first, _normed),
    "Qwen2MoeTopKRouter": Family(_softmax, _logits_first, _normed_if_asked),
    "Qwen3MoeTopKRouter": Family(_softmax, _logits_first, _normed_if_asked),
    "OlmoeTopKRouter": Family(_softmax, _logits_first, _normed_if_asked),
    "DeepseekV2TopkRouter": Family(_softmax, _logits_first, _scaled),
    "DeepseekV3TopkRouter": Family(_sigmoid, _logits_first, _normed_and_scaled),
    "Glm4MoeTopkRouter": Family(_sigmoid, _logits_first, _normed_and_scaled),
    "Llama4Router": Family(_sigmoid, _logits_last, _all_but_zeroed),
}
"""Routers of transformers, by the names of their classes."""


class Router(NamedTuple):
    """A router of a model.

    Args:
        name: its path in the model.
        module: itself.
        family: how it speaks.
    """

    name: str
    module: nn.Module
    family: Family


def find_routers(model: nn.Module) -> list[Router]:
    """The routers of a model whose families are known, in the order of its layers; none in a dense model."""
    found = ((name, module, FAMILIES.get(type(module).__name__)) for name, module in model.named_modules())
    return [Router(name, module, family) for name, module, family in found if family is not None]


def require_routers(model: Any, key: str) -> list[Router]:
    """The routers of a model that something needs to know.

    Args:
        model: of Hugging Face.
        key: of the setting that needs them.

    Raises:
        ValueError: if there are none, or none that are known.
    """
    routers = find_routers(model)
    if not routers:
        raise ValueError(
            f"{key} is set, and '{model.config.model_type}' has no routers that are known; known are "
            f"{', '.join(FAMILIES)} (a further family is one row of lit_rlhf.models.moe.routers.FAMILIES)"
        )
    return routers


def freeze_routers(model: nn.Module) -> None:
    """Let the weights of all routers stay as they are."""
    for router in find_routers(model):
        router.module.requires_grad_(False)


@contextmanager
def heard(routers: Sequence[Router], is_on: Callable[[], bool]) -> Iterator[dict[int, Routed]]:
    """Collect what routers say in one pass inside the context.

    Hooks only keep what is said and compute nothing, so that layers which are computed again in the backward pass,
    outside of the context, come to the same.

    Args:
        routers: of a model.
        is_on: whether a pass that runs right now is to be heard.

    Yields:
        What each router said last, by its number; empty until a pass was heard.
    """
    said: dict[int, Routed] = {}

    def listener(number: int, family: Family) -> Callable[[nn.Module, Any, Any], None]:
        def listen(module: nn.Module, inputs: Any, output: Any) -> None:
            if is_on():
                said[number] = Routed(*family.read(module, output), family.probabilities)

        return listen

    # First of all hooks: what a router chose by itself is heard before anything else is made of it.
    handles = [
        router.module.register_forward_hook(listener(number, router.family), prepend=True)
        for number, router in enumerate(routers)
    ]
    try:
        yield said
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forced(routers: Sequence[Router], experts: Tensor, is_on: Callable[[], bool]) -> Iterator[None]:
    """Make routers choose given experts inside the context; their weights, and all gradients, are those of the choice.

    Args:
        routers: of a model, D of them.
        experts: (T, D, k) of the tokens of the pass, in its order.
        is_on: whether a pass that runs right now is to be changed.

    Source:
        Zheng et al., "Group Sequence Policy Optimization", https://arxiv.org/abs/2507.18071, section 5.3 (routing
        replay); Ma et al., "Stabilizing MoE Reinforcement Learning by Aligning Training and Inference Routers",
        https://arxiv.org/abs/2510.11370
    """

    def writer(number: int, family: Family) -> Callable[[nn.Module, Any, Any], Any]:
        def write(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not is_on():
                return None
            logits, _ = family.read(module, output)
            return family.write(module, output, family.scores(logits), experts[:, number].long())

        return write

    handles = [
        router.module.register_forward_hook(writer(number, router.family)) for number, router in enumerate(routers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
