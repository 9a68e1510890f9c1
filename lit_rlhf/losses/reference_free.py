"""Reference-free losses: they read the policy's log-probabilities alone, so no reference is computed. B counts pairs.

Where we depart from TRL 1.16: the likelihood term of CPO and ORPO is averaged over each chosen response's own tokens,
so that it is a number of the pair. TRL averages over all tokens of a micro-batch, prompts included. For a mean over all
response tokens of the step, set ``nll_coef`` to 0 and add ``sft_loss`` as a second loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_rlhf.losses.marks import allows_divergence, averaged_over_chosen_tokens
from lit_rlhf.losses.preference import conservative_loss
from lit_rlhf.losses.shapes import check_pairs


@averaged_over_chosen_tokens
@allows_divergence
def sft_loss(chosen_logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen responses: keeps them likely while another loss orders them.

    The sums returned are divided by the chosen response tokens of the step, not by its pairs: a mean over tokens.

    Args:
        chosen_logprobs: (B,) policy log-probabilities of the chosen responses, in nats.

    Returns:
        (B,) negative log-likelihoods, summed over each response's tokens.

    Raises:
        ValueError: if the shape is not (B,).

    Source:
        As the second term of RPO, Nemotron-4 (2024), https://arxiv.org/abs/2406.11704, and of MPO, Wang et al. (2024),
        https://arxiv.org/abs/2411.10442

    Example:
        >>> sft_loss(torch.tensor([-3.0, -1.0])).tolist()
        [3.0, 1.0]
    """
    check_pairs(chosen_logprobs=chosen_logprobs)
    return -chosen_logprobs


def simpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Tensor:
    """SimPO: the reward is the mean log-probability of a token, and the chosen one must lead by a margin.

    Args:
        chosen_logprobs: (B,) policy log-probabilities of the chosen responses, in nats.
        rejected_logprobs: (B,) the same of the rejected ones.
        chosen_lengths: (B,) tokens of the chosen responses.
        rejected_lengths: (B,) tokens of the rejected ones.
        beta: reward per nat of mean log-probability, 2-10 usual.
        gamma: reward margin asked for; 0.3-0.8 of beta usual.

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Meng et al. (2024), eq. 6, https://arxiv.org/abs/2405.14734

    Example:
        >>> one, two = torch.tensor([1.0]), torch.tensor([2.0])
        >>> simpo_loss(-2 * one, -2 * one, two, one, beta=2.0, gamma=1.0)
        tensor([0.3133])
    """
    chosen, rejected = _means(chosen_logprobs, rejected_logprobs, chosen_lengths, rejected_lengths)
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)  # eq. 6


def cpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    nll_coef: float = 1.0,
) -> Tensor:
    """CPO: DPO under a uniform reference, plus the likelihood of the chosen response.

    Args:
        chosen_logprobs: (B,) policy log-probabilities of the chosen responses, in nats.
        rejected_logprobs: (B,) the same of the rejected ones.
        chosen_lengths: (B,) tokens of the chosen responses.
        beta: reward per nat of log-probability, 0.1 usual.
        label_smoothing: probability that a label is flipped, in [0, 0.5).
        nll_coef: weight of the mean negative log-likelihood of the chosen response's tokens.

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,), or ``label_smoothing`` is out of range.

    Source:
        Xu et al. (2024), eq. 3 and the term after it, https://arxiv.org/abs/2401.08417

    Example:
        >>> cpo_loss(torch.tensor([-4.0]), torch.tensor([-4.0]), torch.tensor([2.0]))
        tensor([2.6931])
    """
    check_pairs(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs, chosen_lengths=chosen_lengths)
    prefer = conservative_loss(chosen_logprobs, rejected_logprobs, beta=beta, label_smoothing=label_smoothing)  # eq. 3
    return prefer - nll_coef * chosen_logprobs / chosen_lengths.clamp(min=1)


def orpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
    nll_coef: float = 1.0,
) -> Tensor:
    """ORPO: fine-tuning on the chosen response, plus a penalty on the odds of the rejected one.

    The probability of a response is the geometric mean over its tokens, as in the paper.

    Args:
        chosen_logprobs: (B,) policy log-probabilities of the chosen responses, in nats.
        rejected_logprobs: (B,) the same of the rejected ones.
        chosen_lengths: (B,) tokens of the chosen responses.
        rejected_lengths: (B,) tokens of the rejected ones.
        beta: weight of the odds ratio, the paper's lambda; 0.1-0.25 usual.
        nll_coef: weight of the mean negative log-likelihood of the chosen response's tokens.

    Returns:
        (B,) losses.

    Raises:
        ValueError: if the shapes are not (B,).

    Source:
        Hong et al. (2024), eq. 6 and 7, https://arxiv.org/abs/2403.07691

    Example:
        >>> half, one = torch.tensor([0.5]).log(), torch.tensor([1.0])
        >>> orpo_loss(2 * half, half, 2 * one, one, beta=1.0)
        tensor([1.3863])
    """
    chosen, rejected = _means(chosen_logprobs, rejected_logprobs, chosen_lengths, rejected_lengths)
    odds_ratio = -F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))  # eq. 7
    return beta * odds_ratio - nll_coef * chosen  # eq. 6


def _means(
    chosen_logprobs: Tensor, rejected_logprobs: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean log-probability of a token, chosen and rejected (B,); an empty response counts as one token."""
    check_pairs(
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    return chosen_logprobs / chosen_lengths.clamp(min=1), rejected_logprobs / rejected_lengths.clamp(min=1)


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p; the cap keeps a certain response (p = 1) finite."""
    logprobs = logprobs.clamp(max=-1e-7)
    return logprobs - torch.log(-torch.expm1(logprobs))
