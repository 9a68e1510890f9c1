"""Reward losses: what makes a score agree with what people said of responses, in pairs, in lists, alone or by step.

Shape letters: B preference pairs, R responses, G lists of ranked responses, N judged steps. Scores are in nats: a
difference of d means that the better response wins with probability sigmoid(d).

Where we depart from TRL 1.16, whose numbers ``bradley_terry_loss`` and ``centring_loss`` otherwise give: labels may be
smoothed and margins scaled; ties, lists, grades and judged steps have losses of their own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_rlhf.losses.preference import conservative_loss
from lit_rlhf.losses.shapes import check_pairs, check_responses, check_steps


def bradley_terry_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margins: Tensor,
    *,
    label_smoothing: float = 0.0,
    margin_scale: float = 1.0,
) -> Tensor:
    """Bradley-Terry: the chosen response should score higher, by more than the margin.

    Args:
        chosen_scores: (B,) of the preferred responses.
        rejected_scores: (B,) of the others.
        margins: (B,) by how much the chosen response is better, in the unit of the data; 0 where unknown.
        label_smoothing: probability that a label is flipped, in [0, 0.5).
        margin_scale: nats per unit of the margins; 0 leaves them out.

    Returns:
        (B,) losses; log 2 where both score the same and the margin is 0.

    Raises:
        ValueError: if the shapes are not (B,), or ``label_smoothing`` is out of range.

    Source:
        Bradley and Terry (1952); with margins Touvron et al. (2023), eq. 2, https://arxiv.org/abs/2307.09288

    Example:
        >>> bradley_terry_loss(torch.tensor([2.0, 2.0]), torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor([0.1269, 0.3133])
    """
    check_pairs(chosen_scores=chosen_scores, rejected_scores=rejected_scores, margins=margins)
    differences = chosen_scores - rejected_scores
    return conservative_loss(differences, margin_scale * margins, beta=1.0, label_smoothing=label_smoothing)


def centring_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Centring: scores should lie around 0, which pairs alone leave open. Add it with a small weight, such as 0.01.

    Args:
        chosen_scores: (B,) of the preferred responses.
        rejected_scores: (B,) of the others.

    Returns:
        (B,) squared sums of both scores.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Eisenstein et al. (2023), https://arxiv.org/abs/2312.09244

    Example:
        >>> centring_loss(torch.tensor([2.0, 1.0]), torch.tensor([1.0, -1.0]))
        tensor([9., 0.])
    """
    check_pairs(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return (chosen_scores + rejected_scores) ** 2


def tied_bradley_terry_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, ties: Tensor, *, threshold: float = 0.5
) -> Tensor:
    """Bradley-Terry with ties (Rao and Kupper): responses whose scores differ by little may be called equal.

    Args:
        chosen_scores: (B,) of the preferred responses; of either in a tie.
        rejected_scores: (B,) of the others.
        ties: (B,) bool, True = neither response is better.
        threshold: log of Rao and Kupper's theta, in nats, above 0: by how much a response must be better to win every
            other time. Equals tie with probability tanh(threshold / 2): 0.24 at 0.5, 0.46 at 1.

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,), or ``threshold`` is not above 0.

    Source:
        Rao and Kupper (1967); as a reward loss Liu et al. (2024), https://arxiv.org/abs/2410.05328

    Example:
        >>> tied_bradley_terry_loss(torch.zeros(2), torch.zeros(2), torch.tensor([False, True]), threshold=1.0)
        tensor([1.3133, 0.7719])
    """
    check_pairs(chosen_scores=chosen_scores, rejected_scores=rejected_scores, ties=ties)
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}; without ties use bradley_terry_loss")
    differences = chosen_scores - rejected_scores
    won = -F.logsigmoid(differences - threshold)
    tied = won - F.logsigmoid(-differences - threshold) - math.log(math.expm1(2 * threshold))
    return torch.where(ties, tied, won)


def davidson_loss(chosen_scores: Tensor, rejected_scores: Tensor, ties: Tensor, *, nu: float = 1.0) -> Tensor:
    """Davidson's model of ties: as Rao and Kupper's, but the odds of winning stay those of Bradley and Terry.

    Args:
        chosen_scores: (B,) of the preferred responses; of either in a tie.
        rejected_scores: (B,) of the others.
        ties: (B,) bool, True = neither response is better.
        nu: how common ties are, above 0; equals tie with probability nu / (2 + nu).

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,), or ``nu`` is not above 0.

    Source:
        Davidson (1970); with preferences Chen et al. (2024), https://arxiv.org/abs/2409.17431

    Example:
        >>> davidson_loss(torch.zeros(2), torch.zeros(2), torch.tensor([False, True]), nu=2.0)
        tensor([1.3863, 0.6931])
    """
    check_pairs(chosen_scores=chosen_scores, rejected_scores=rejected_scores, ties=ties)
    if not nu > 0:
        raise ValueError(f"nu must be above 0, got {nu}; without ties use bradley_terry_loss")
    half = (chosen_scores - rejected_scores) / 2
    outcomes = torch.stack([half, -half, torch.full_like(half, math.log(nu))])  # won, lost, tied: log odds
    return outcomes.logsumexp(0) - torch.where(ties, outcomes[2], outcomes[0])


def plackett_luce_loss(scores: Tensor, ranks: Tensor, lists: Tensor) -> Tensor:
    """Plackett-Luce: the best of a list is chosen first, then the best of those that are left, and so on.

    Responses of the worst rank are not chosen from each other, so that "one best of four" is a softmax over four.
    Equal ranks elsewhere may have come in any order (Efron's form of that sum, exact where they score the same).

    Args:
        scores: (R,) of responses.
        ranks: (R,) place of each in its list, smaller is better.
        lists: (R,) int64, number of the list that each belongs to.

    Returns:
        (G,) -log probability of each list with two different ranks or more, by list number; of two responses it is
        Bradley-Terry's.

    Raises:
        ValueError: if the shapes are not (R,).

    Source:
        Plackett (1975), Luce (1959); Ouyang et al. (2022), section 3.5, https://arxiv.org/abs/2203.02155 (its pairs);
        equal ranks: Efron (1977), The efficiency of Cox's likelihood function for censored data

    Example:
        >>> ranks, lists = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 0, 0, 1, 1])
        >>> plackett_luce_loss(torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0]), ranks, lists)
        tensor([1.7918, 2.1269])
    """
    check_responses(scores=scores, ranks=ranks, lists=lists)
    listed = lists[:, None] == lists
    left = listed & (ranks >= ranks[:, None])  # row i: what response i was chosen from
    tied = listed & (ranks == ranks[:, None])
    is_choice = (left & ~tied).any(1)
    minus_infinity = scores.new_tensor(-math.inf)
    all_left = torch.where(left, scores, minus_infinity).logsumexp(1)
    all_tied = torch.where(tied, scores, minus_infinity).logsumexp(1)
    earlier = tied.tril(-1).sum(1).to(scores)  # of the equals of i: those that are counted as chosen before it
    gone = torch.log1p(-(earlier / tied.sum(1)) * torch.exp(all_tied - all_left)) - torch.log1p(earlier)
    numbers, number_of = lists[is_choice].unique(return_inverse=True)
    return scores.new_zeros(len(numbers)).index_add(0, number_of, (all_left + gone - scores)[is_choice])


def regression_loss(scores: Tensor, grades: Tensor) -> Tensor:
    """Regression: the score should equal the grade.

    Args:
        scores: (R,) of responses.
        grades: (R,) how good each is, higher better.

    Returns:
        (R,) squared errors.

    Raises:
        ValueError: if the shapes are not (R,).

    Source:
        Wang et al. (2024), HelpSteer2, https://arxiv.org/abs/2406.08673

    Example:
        >>> regression_loss(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 4.0]))
        tensor([4., 0.])
    """
    check_responses(scores=scores, grades=grades)
    return (scores - grades) ** 2


def huber_loss(scores: Tensor, grades: Tensor, *, delta: float = 1.0) -> Tensor:
    """Regression that a few wild grades cannot rule: squared near the grade, linear far from it.

    Args:
        scores: (R,) of responses.
        grades: (R,) how good each is, higher better.
        delta: distance, in the unit of the grades, from which the loss is linear; above 0.

    Returns:
        (R,) losses; half the squared error near the grade.

    Raises:
        ValueError: if the shapes are not (R,), or ``delta`` is not above 0.

    Source:
        Huber (1964), Robust estimation of a location parameter

    Example:
        >>> huber_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor([0.5000, 2.5000])
    """
    check_responses(scores=scores, grades=grades)
    if not delta > 0:
        raise ValueError(f"delta must be above 0, got {delta}")
    return F.huber_loss(scores, grades, reduction="none", delta=delta)


def step_loss(step_scores: Tensor, step_labels: Tensor) -> Tensor:
    """Process reward: sigmoid of a step's score should be the probability that the step is right.

    Args:
        step_scores: (N,) log odds of judged steps.
        step_labels: (N,) from 0 (wrong) to 1 (right).

    Returns:
        (N,) binary cross entropies, in nats.

    Raises:
        ValueError: if the shapes are not (N,).

    Source:
        Lightman et al. (2023), https://arxiv.org/abs/2305.20050; Uesato et al. (2022), https://arxiv.org/abs/2211.14275

    Example:
        >>> step_loss(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([0.5, 1.0, 0.0]))
        tensor([0.6931, 0.1269, 2.1269])
    """
    check_steps(step_scores=step_scores, step_labels=step_labels)
    return F.binary_cross_entropy_with_logits(step_scores, step_labels.to(step_scores), reduction="none")
