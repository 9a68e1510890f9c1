"""Scores of responses to scores that are learnt from.

Shape letters: L responses of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.losses.score_shaping import (
    clipped_scores,
    normalised_scores,
    overlong_penalty,
    penalised_scores,
    replaced_scores,
    updated_moments,
)
from lit_rlhf.ranks import gather_rows
from lit_rlhf.rollout.options import ScoreOptions
from lit_rlhf.types import Rollouts


class ScoreShaper(nn.Module):
    """Normalises, bounds and penalises scores, as :class:`lit_rlhf.rollout.options.ScoreOptions` says.

    Args:
        options: what becomes of scores.

    Attributes:
        moments: (3,) float64: number, mean and sum of squared deviations of all scores so far, over all ranks. Part of
            checkpoints.
    """

    def __init__(self, options: ScoreOptions) -> None:
        super().__init__()
        self.options = options
        self.moments: Tensor
        self.register_buffer("moments", torch.zeros(3, dtype=torch.float64))

    def forward(self, scores: Tensor, rollouts: Rollouts, max_new_tokens: int) -> Tensor:
        """(L,) shaped scores; those of all ranks are taken into the running statistics first.

        Args:
            scores: (L,) as the rewards gave them.
            rollouts: the responses.
            max_new_tokens: where a response is cut.
        """
        options = self.options
        if options.normalise == "running":
            everyone = gather_rows(scores.double()[:, None])[0][:, 0]
            count, mean, squares = self.moments
            count, _, squares = moments = updated_moments(count, mean, squares, everyone)
            self.moments.copy_(torch.stack(moments))
            scores = normalised_scores(scores, 0.0, (squares / count.clamp(min=1.0)).sqrt().float())
        if options.clip:
            scores = clipped_scores(scores, clip=options.clip)
        if options.missing_eos_score is not None:
            scores = replaced_scores(scores, rollouts.finished, missing_eos_score=options.missing_eos_score)
        scores = penalised_scores(
            scores,
            rollouts.lengths,
            rollouts.finished,
            missing_eos_penalty=options.missing_eos_penalty,
            min_length=options.min_length,
            short_penalty=options.short_penalty,
        )
        if options.overlong_buffer:
            scores = scores + overlong_penalty(
                rollouts.lengths, max_new_tokens, buffer=options.overlong_buffer, factor=options.overlong_penalty
            )
        return scores

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move between devices, but keep every digit: bfloat16 cannot count to 257."""
        device = fn(torch.zeros(0, device=self.moments.device)).device
        widest = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no wider one
        return super()._apply(lambda tensor: tensor.to(device, widest), recurse)
