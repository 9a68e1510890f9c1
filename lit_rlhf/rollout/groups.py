"""Groups: the responses to one prompt, which are compared with each other.

Shape letters: L responses of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.ranks import gather_rows
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions
from lit_rlhf.types import Rollouts


def require_groups(sampling: SamplingOptions, algorithm: str, usual: int) -> None:
    """Refuse one response per prompt, which nothing could be compared with.

    Args:
        sampling: how responses are drawn.
        algorithm: that compares them.
        usual: number of responses.

    Raises:
        ValueError: if there is one response to a prompt.
    """
    if sampling.num_responses < 2:
        raise ValueError(
            f"sampling.num_responses is {sampling.num_responses}; {algorithm} compares the responses to one prompt "
            f"with each other, so it is at least 2, {usual} usual"
        )


def require_whole_responses(updates: UpdateOptions, algorithm: str) -> None:
    """Refuse an average over tokens, where losses are of whole responses.

    Args:
        updates: how responses are learnt from.
        algorithm: whose losses they are.

    Raises:
        ValueError: if ``average`` is not as it comes.
    """
    if updates.average != UpdateOptions().average:
        raise ValueError(
            f"updates.average is '{updates.average}'; the losses of {algorithm} are of whole responses, which are "
            "averaged as they are: leave it out"
        )


def advantages_over_ranks(function: Callable[..., Tensor], scores: Tensor, groups: Tensor, **options: Any) -> Tensor:
    """(L,) advantages of responses in the light of those of all ranks; exactly 0 in a group of equal scores.

    Args:
        function: gives (L,) advantages from scores (L,) and groups (L,).
        scores: (L,) of this rank.
        groups: (L,) int64, number of the prompt of each response, from 0, ascending; a group lies on one rank.
        **options: of the function.
    """
    everyone, begin = gather_rows(scores[:, None])
    # No rank has more groups than responses, so that shifted numbers do not meet.
    names = gather_rows((groups + begin)[:, None])[0]
    advantages = function(everyone[:, 0], names[:, 0], **options)[begin : begin + len(scores)]
    return advantages.masked_fill(without_spread(scores, groups), 0.0)


def without_spread(scores: Tensor, groups: Tensor) -> Tensor:
    """(L,) bool, True = all responses to the same prompt have the same score, so that none is better than another.

    Args:
        scores: (L,) of this rank.
        groups: (L,) int64, number of the prompt of each response, from 0, ascending.

    Example:
        >>> without_spread(torch.tensor([1.0, 1.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 1])).tolist()
        [True, True, False, False]
    """
    if not len(scores):
        return scores.bool()
    ends = scores.new_zeros(int(groups.max()) + 1)
    highest = ends.scatter_reduce(0, groups, scores, "amax", include_self=False)
    lowest = ends.scatter_reduce(0, groups, scores, "amin", include_self=False)
    return (highest == lowest)[groups]


def best_and_worst(scores: Tensor, groups: Tensor, is_allowed: Tensor) -> Tensor:
    """(B, 2) int64, the best and the worst response to each prompt; prompts whose responses score alike have none.

    Args:
        scores: (L,) of this rank.
        groups: (L,) int64, number of the prompt of each response, from 0, ascending.
        is_allowed: (L,) bool, True = may be chosen and rejected.

    Example:
        >>> scores, groups = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])
        >>> best_and_worst(scores, groups, torch.ones(5).bool()).tolist()
        [[1, 0]]
    """
    pairs = []
    for number in groups[is_allowed].unique():
        members = (is_allowed & (groups == number)).nonzero()[:, 0]
        best, worst = members[scores[members].argmax()], members[scores[members].argmin()]
        if scores[best] > scores[worst]:
            pairs.append(torch.stack([best, worst]))
    return torch.stack(pairs) if pairs else groups.new_zeros(0, 2)


def select(rollouts: Rollouts, members: Tensor) -> Rollouts:
    """Some of the responses, in any order.

    Args:
        rollouts: of this rank.
        members: (l,) int64, which.
    """
    prompts = tuple(rollouts.prompts[member] for member in members.tolist())
    return Rollouts(prompts, *(column[members] for column in rollouts[1:]))
