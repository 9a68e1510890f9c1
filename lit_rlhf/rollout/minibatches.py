"""What is learnt from together: the same split whatever the number of ranks.

Shape letters: L responses of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lit_rlhf.ranks import gather_rows
from lit_rlhf.rollout.drawing import response_names, seed_of
from lit_rlhf.types import Rollouts


def split(rollouts: Rollouts, num_minibatches: int, key: str, together: int = 1) -> list[list[int]]:
    """Deal the responses of all ranks out into minibatches of equal size, at random.

    Args:
        rollouts: of this rank.
        num_minibatches: how many; sizes differ by one response (or run) at most, over all ranks.
        key: names the draw, such as seed, iteration and pass over the data.
        together: responses that are not parted, such as 2 where they come in pairs; they stand in runs of that many.

    Returns:
        For each minibatch the responses of this rank that belong to it, ascending; maybe none.
    """
    names = response_names(rollouts.prompts, 1)[::together]
    runs = deal(names, num_minibatches, key, rollouts.tokens.device)
    return [[run * together + place for run in part for place in range(together)] for part in runs]


def deal(names: Sequence[str], num_minibatches: int, key: str, device: torch.device) -> list[list[int]]:
    """Deal what all ranks have out into minibatches of equal size, at random.

    Args:
        names: of what this rank has; maybe none.
        num_minibatches: how many; sizes differ by one at most, over all ranks.
        key: names the draw.
        device: that the ranks communicate on.

    Returns:
        For each minibatch the indices of this rank that belong to it, ascending; maybe none.
    """
    mine = [seed_of(f"{key}:{name}") for name in names]
    everyone, begin = gather_rows(torch.tensor(mine, dtype=torch.int64, device=device)[:, None])
    order = torch.empty(len(everyone), dtype=torch.int64, device=device)
    order[everyone[:, 0].argsort()] = torch.arange(len(everyone), device=device)
    numbers = (order * num_minibatches // max(len(everyone), 1))[begin : begin + len(mine)].tolist()
    return [[index for index, number in enumerate(numbers) if number == part] for part in range(num_minibatches)]
