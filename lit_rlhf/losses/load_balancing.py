"""Load balancing of mixtures of experts: the loss of a whole step, and how evenly its tokens were shared out.

Both read sums over tokens, which add up over micro-batches and ranks, so that no cut changes a number.

Shape letters: D layers with experts, E experts of a layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ExpertLoad(NamedTuple):
    """How evenly the experts of a model were used; shares are of what an even split would give each (1 = even).

    Args:
        max: () share of the busiest expert of any layer; E / k where all tokens go to the same k.
        min: () share of the idlest expert of any layer; 0 where one gets no token.
        entropy: () of the choices of a layer in units of log E, mean over layers; 1 = even, 0 = one expert has all.
    """

    max: Tensor
    min: Tensor
    entropy: Tensor


def load_balancing_loss(probabilities: Tensor, choices: Tensor, *, num_tokens: Tensor, pooled: bool = False) -> Tensor:
    """``E * sum_e f_e P_e`` of a layer: f_e the choices of expert e per token, P_e its mean probability.

    It is k, the number of experts of a token, where tokens are split evenly, and up to E where the same few have all of
    them. f_e carries no gradient: the loss lowers the probability of an expert by how often it is chosen.

    The loss is linear in the probabilities. With the choices of the whole step, the losses of its micro-batches
    therefore sum to that of the step; with the choices of each micro-batch they would not.

    Args:
        probabilities: (D, E) sums over tokens of the routers' probabilities, of the step or of a part of it.
        choices: (D, E) how many tokens of the step chose each expert.
        num_tokens: () tokens of the step.
        pooled: average f and P over layers before they are multiplied, as transformers does. A model whose layers
            each use other experts only is then taken for even.

    Returns:
        () mean over layers.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Fedus et al., "Switch Transformers", https://arxiv.org/abs/2101.03961, eq. 4-6; Lepikhin et al., "GShard",
        https://arxiv.org/abs/2006.16668, algorithm 1

    Example:
        >>> choices = torch.tensor([[4.0, 0.0]])
        >>> float(load_balancing_loss(torch.tensor([[3.0, 1.0]]), choices, num_tokens=torch.tensor(4.0)))
        1.5
    """
    if probabilities.ndim != 2 or probabilities.shape != choices.shape:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} and choices {tuple(choices.shape)} are not both (D, E)"
        )
    frequency, mean = choices.detach() / num_tokens, probabilities / num_tokens
    if pooled:
        frequency, mean = frequency.mean(0, keepdim=True), mean.mean(0, keepdim=True)
    return choices.shape[1] * (frequency * mean).sum(1).mean()


def expert_load(choices: Tensor) -> ExpertLoad:
    """How evenly tokens were shared out.

    Args:
        choices: (D, E) how many tokens chose each expert of each layer; at least one in each.

    Example:
        >>> [round(float(part), 3) for part in expert_load(torch.tensor([[3.0, 1.0]]))]
        [1.5, 0.5, 0.811]
    """
    share = choices / choices.sum(1, keepdim=True)
    even = choices.shape[1]
    entropy = -torch.special.xlogy(share, share).sum(1) / torch.tensor(float(max(even, 2))).log()
    return ExpertLoad(share.max() * even, share.min() * even, entropy.mean())
