"""Groups: the responses to one prompt, which are compared with each other.

Shape letters: L responses of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_rlhf.ranks import gather_rows
from lit_rlhf.rollout.sampling import SamplingOptions


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
