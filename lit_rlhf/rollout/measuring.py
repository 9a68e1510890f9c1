"""Numbers of the tokens of responses, as a model gives them, and what a loss over them is divided by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_rlhf.losses.advantages import whiten
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.ranks import gather_rows, num_ranks, sum_over_ranks
from lit_rlhf.rollout.packing import pack, padded_values
from lit_rlhf.types import Forest, Rollouts


class PolicyMeasures(NamedTuple):
    """What policy and reference say of the tokens of responses, (L, R) float32 each, 0 behind a response.

    Args:
        logprobs: log-probabilities under the policy, in nats.
        ref_logprobs: the same under the reference.
        entropy: of the policy, in nats.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor


def measure_policy(backbone: Backbone, rollouts: Rollouts, *, token_budget: int, temperature: float) -> PolicyMeasures:
    """Log-probabilities and entropies of responses.

    Args:
        backbone: of policy and reference.
        rollouts: of this rank.
        token_budget: most tokens of one forward pass.
        temperature: that the responses were drawn at.
    """

    def read(forest: Forest) -> tuple[Tensor, ...]:
        policy = backbone.token_logprobs(forest, with_entropy=True, temperature=temperature)
        with backbone.role("reference"):
            return policy.logprobs, backbone.token_logprobs(forest, temperature=temperature).logprobs, policy.entropy

    return PolicyMeasures(*measure(rollouts, token_budget, read, num_columns=3))


@torch.no_grad()
def measure(
    rollouts: Rollouts, token_budget: int, read: Callable[[Forest], Sequence[Tensor]], num_columns: int
) -> list[Tensor]:
    """What a model says of every token of every response.

    Args:
        rollouts: of this rank.
        token_budget: most tokens of one forward pass.
        read: gives (N,) numbers of the scored tokens of a forest, several columns of them.
        num_columns: how many columns.

    Returns:
        For each column its numbers, (L, R) float32, 0 behind a response.
    """
    micro_batches = pack(rollouts, range(len(rollouts.prompts)), token_budget)
    said = [read(micro_batch.forest) for micro_batch in micro_batches]
    return [padded_values([columns[k] for columns in said], rollouts, micro_batches) for k in range(num_columns)]


def token_weights(
    mask: Tensor, members: Sequence[int], average: Literal["tokens", "sequences"], device: torch.device
) -> Tensor:
    """(L, R) what the loss of each token is multiplied by, so that the sum over all ranks is an average.

    Strategies average gradients over ranks, which is undone here.

    Args:
        mask: (L, R) bool, True = learnt from.
        members: the responses of this rank that are learnt from in this step; the others weigh nothing.
        average: over all tokens of the step, or over the tokens of each response and then over responses.
        device: that the ranks communicate on.
    """
    mine = torch.zeros(len(mask), 1, dtype=torch.bool, device=device)
    mine[list(members)] = True
    counted = (mask & mine).float()
    lengths = counted.sum(1, keepdim=True)
    total = counted.sum() if average == "tokens" else (lengths > 0).sum()
    weights = counted if average == "tokens" else counted / lengths.clamp(min=1.0)
    return weights * num_ranks() / sum_over_ranks(total.float()).clamp(min=1.0)


def whitened_over_ranks(values: Tensor, mask: Tensor) -> Tensor:
    """(L, R) numbers of tokens brought to mean 0 and standard deviation 1 over all ranks; 0 outside of the mask.

    Args:
        values: (L, R).
        mask: (L, R) bool, True = counts.
    """
    everyone = gather_rows(values[mask][:, None])[0].double()
    if not len(everyone):
        return values
    return whiten(values, mask, mean=everyone.mean().float(), var=everyone.var(correction=0).float())
