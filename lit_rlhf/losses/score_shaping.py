"""Score shaping: what is done to the scores of responses before a policy learns from them.

In the order they are usually applied: running normalisation; a clip; penalties for responses that did not end, are too
short or too long, which are in the unit of what was clipped. L counts responses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.losses.rounding import without_rounding
from lit_rlhf.losses.shapes import check_sequences


class Moments(NamedTuple):
    """Count, mean and spread of all the scores so far; state, so it belongs in checkpoints. Begin with three zeros.

    Args:
        num_scores: scalar.
        mean: scalar, of scores.
        m2: scalar, sum of squared distances from the mean.
    """

    num_scores: Tensor
    mean: Tensor
    m2: Tensor

    @property
    def std(self) -> Tensor:
        """Scalar, standard deviation with Bessel's correction; 0 of fewer than two scores, and of equal ones."""
        return without_rounding(self.m2 / (self.num_scores - 1).clamp(min=1), self.mean).sqrt()


def penalised_scores(
    scores: Tensor,
    lengths: Tensor,
    finished: Tensor,
    *,
    missing_eos_penalty: float = 1.0,
    min_length: int = 0,
    short_penalty: float = 1.0,
) -> Tensor:
    """Scores less a penalty for responses that were cut at the length limit, and for those that are too short.

    A penalty is subtracted, so that ending is better than not ending whatever the scores are. To put a fixed score in
    the place of the reward model's, see :func:`replaced_scores`.

    Args:
        scores: (L,) of the responses.
        lengths: (L,) their tokens, the one that ended them included.
        finished: (L,) bool, True = ended by itself, False = cut at the limit.
        missing_eos_penalty: off the score of a response that was cut, in the unit of the scores; 0 = none.
        min_length: tokens that a response should have; 0 = any number.
        short_penalty: off the score of a response with fewer, in the unit of the scores.

    Returns:
        (L,) scores.

    Raises:
        ValueError: if the shapes are not (L,), or a penalty is below 0.

    Source:
        Huang et al. (2024), the N+ implementation details, https://arxiv.org/abs/2403.17031; subtracted as by TRL

    Example:
        >>> scores, finished = torch.tensor([2.0, 2.0, 2.0]), torch.tensor([True, False, True])
        >>> penalised_scores(scores, torch.tensor([9, 9, 1]), finished, min_length=2, short_penalty=0.5).tolist()
        [2.0, 1.0, 1.5]
    """
    check_sequences(scores=scores, lengths=lengths, finished=finished)
    if missing_eos_penalty < 0 or short_penalty < 0:
        raise ValueError(
            f"penalties are subtracted and must not be below 0, got missing_eos_penalty {missing_eos_penalty}"
            f" and short_penalty {short_penalty}"
        )
    return scores - missing_eos_penalty * ~finished - short_penalty * (lengths < min_length)


def replaced_scores(scores: Tensor, finished: Tensor, *, missing_eos_score: float = -1.0) -> Tensor:
    """A fixed score for responses that were cut at the length limit, whatever the reward model says of the torso.

    It must be lower than what responses that end are given, or the policy learns not to end them.

    Args:
        scores: (L,) of the responses.
        finished: (L,) bool, True = ended by itself, False = cut at the limit.
        missing_eos_score: of a response that was cut.

    Returns:
        (L,) scores.

    Raises:
        ValueError: if the shapes are not (L,).

    Source:
        Huang et al. (2024), the N+ implementation details, https://arxiv.org/abs/2403.17031

    Example:
        >>> replaced_scores(torch.tensor([2.0, 2.0]), torch.tensor([True, False])).tolist()
        [2.0, -1.0]
    """
    check_sequences(scores=scores, finished=finished)
    return torch.where(finished, scores, missing_eos_score)


def overlong_penalty(lengths: Tensor, max_length: int, *, buffer: int, factor: float = 1.0) -> Tensor:
    """DAPO's soft punishment of length: 0 up to ``buffer`` tokens before the limit, then falling to ``-factor`` at it.

    Args:
        lengths: (L,) tokens of the responses.
        max_length: tokens at which the whole penalty is due.
        buffer: tokens before it at which the penalty begins; a fifth of ``max_length`` in the paper.
        factor: the whole penalty, in the unit of the scores.

    Returns:
        (L,) float32 in [-factor, 0]; add it to the scores.

    Raises:
        ValueError: if the shape is not (L,), or not 0 < ``buffer`` <= ``max_length``.

    Source:
        Yu et al. (2025), DAPO, eq. 13, https://arxiv.org/abs/2503.14476

    Example:
        >>> overlong_penalty(torch.tensor([8, 10, 12, 15]), 12, buffer=4)
        tensor([-0.0000, -0.5000, -1.0000, -1.0000])
    """
    check_sequences(lengths=lengths)
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer must lie in (0, max_length {max_length}], got {buffer}")
    return -factor * ((lengths - (max_length - buffer)) / buffer).clamp(0.0, 1.0)  # eq. 13


def clipped_scores(scores: Tensor, *, clip: float = 10.0) -> Tensor:
    """Scores within ``-clip`` and ``clip``: an outlier of the reward model must not rule a batch.

    Args:
        scores: (L,) of the responses, normalised.
        clip: largest size of a score, above 0; 10 usual.

    Returns:
        (L,) scores; a NaN stays one.

    Raises:
        ValueError: if the shape is not (L,), or ``clip`` is not above 0.

    Example:
        >>> clipped_scores(torch.tensor([2.0, -30.0])).tolist()
        [2.0, -10.0]
    """
    check_sequences(scores=scores)
    if not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}")
    return scores.clamp(-clip, clip)


@torch.no_grad()
def updated_moments(num_scores: Tensor, mean: Tensor, m2: Tensor, values: Tensor) -> Moments:
    """The moments of what was seen before and of what came now, as if all had come at once.

    Args:
        num_scores: scalar, scores before.
        mean: scalar, their mean; float64 is best.
        m2: scalar, sum of their squared distances from the mean.
        values: (L,) scores that came now, of all ranks; none is fine.

    Raises:
        ValueError: if the shape of ``values`` is not (L,).

    Source:
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance

    Example:
        >>> zero = torch.zeros(())
        >>> moments = updated_moments(*updated_moments(zero, zero, zero, torch.tensor([1.0])), torch.tensor([3.0, 5.0]))
        >>> [float(moment) for moment in moments], float(moments.std)
        ([3.0, 3.0, 8.0], 2.0)
    """
    check_sequences(values=values)
    if not len(values):
        return Moments(num_scores, mean, m2)
    values = values.to(mean)
    distance, total = values.mean() - mean, num_scores + len(values)
    spread = ((values - values.mean()) ** 2).sum() + distance**2 * num_scores * len(values) / total
    return Moments(total, mean + distance * len(values) / total, m2 + spread)


def normalised_scores(scores: Tensor, mean: float | Tensor, std: float | Tensor) -> Tensor:
    """Scores by how many standard deviations they lie from the mean: of a reward model's own data, or of a run so far.

    Args:
        scores: (L,) of the responses.
        mean: scalar that becomes 0; give 0 to scale only, as running scaling usually does.
        std: scalar that becomes 1; where it is 0 (nothing is known of the spread), scores are only shifted.

    Returns:
        (L,) scores, in the dtype they came in.

    Raises:
        ValueError: if the shape is not (L,).

    Source:
        Ziegler et al. (2019), section 2.1, https://arxiv.org/abs/1909.08593; running: Engstrom et al. (2020),
        https://arxiv.org/abs/2005.12729

    Example:
        >>> normalised_scores(torch.tensor([1.0, 5.0]), 3.0, 2.0).tolist()
        [-1.0, 1.0]
    """
    check_sequences(scores=scores)
    std = torch.as_tensor(std)
    return (scores - mean) / torch.where(std == 0, 1.0, std)
