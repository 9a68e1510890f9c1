"""What a loss over the tokens of responses is divided by, and how advantages are brought to one scale: over all ranks.

Shape letters: L responses of this rank, R tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_rlhf.losses.advantages import whiten
from lit_rlhf.ranks import gather_rows, num_ranks, sum_over_ranks


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
