"""Likelihood of texts to imitate, and what each of their tokens weighs.

Shape letters: N scored tokens, L sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smoothed_nll(logprobs: Tensor, leads: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with a target that leaves a part of its mass to all words alike.

    With z the logits of V words and y the word that stands there, the target distribution is 1 - e on y plus e / V on
    every word. As log p_v = z_v - logsumexp(z), its cross-entropy is - log p_y + e (z_y - mean of z): no
    log-probability but that of y is needed.

    Args:
        logprobs: (N,) log-probability of each token, in nats.
        leads: (N,) its logit minus the mean of all logits; may be empty where ``label_smoothing`` is 0.
        label_smoothing: e, from 0 to below 1; 0.1 usual in translation, 0 in instruction tuning.

    Returns:
        (N,) losses, in nats.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Szegedy et al. (2016), section 7, https://arxiv.org/abs/1512.00567

    Example:
        >>> smoothed_nll(torch.tensor([-0.5]), torch.tensor([2.0]), label_smoothing=0.1).tolist()
        [0.699999988079071]
    """
    if not label_smoothing:
        return -logprobs
    if logprobs.ndim != 1 or leads.shape != logprobs.shape:
        raise ValueError(f"logprobs {tuple(logprobs.shape)} and leads {tuple(leads.shape)} are not both (N,)")
    return label_smoothing * leads - logprobs


def token_shares(sequences: Tensor) -> Tensor:
    """Weights (N,) that make a mean over tokens: one each.

    Args:
        sequences: (N,) int64, number of the sequence that each token belongs to.

    Example:
        >>> token_shares(torch.tensor([0, 0, 1])).tolist()
        [1.0, 1.0, 1.0]
    """
    return torch.ones_like(sequences, dtype=torch.float32)


def sequence_shares(sequences: Tensor) -> Tensor:
    """Weights (N,) that make a mean over sequences of the mean over their tokens: those of a sequence sum to one.

    Args:
        sequences: (N,) int64, number of the sequence that each token belongs to.

    Example:
        >>> sequence_shares(torch.tensor([0, 0, 2])).tolist()
        [0.5, 0.5, 1.0]
    """
    return 1.0 / torch.bincount(sequences)[sequences]
