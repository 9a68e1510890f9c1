"""Weighting: factors on tokens (LD-DPO) and on responses (WPO) that go with any preference loss.

Shape letters: N scored tokens, L sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ld_token_weights(sequences: Tensor, lengths: Tensor, shared_lengths: Tensor, *, ld_alpha: float) -> Tensor:
    """LD-DPO: tokens past the length that both responses of a pair share count less, against learning to be long.

    Multiply the token log-probabilities of the policy and of the reference by these weights before they are summed.

    Args:
        sequences: (N,) int64, the sequence that each scored token belongs to, ascending.
        lengths: (L,) int64, scored tokens of each sequence.
        shared_lengths: (L,) int64, scored tokens of the shorter response of the pair that the sequence is in.
        ld_alpha: weight of the tokens past the shared length, in [0, 1]; 1 is DPO, 0.3-0.6 usual.

    Returns:
        (N,) float32 weights.

    Raises:
        ValueError: if ``ld_alpha`` is out of range, or ``lengths`` and ``shared_lengths`` differ in shape.

    Source:
        Liu et al. (2024), https://arxiv.org/abs/2409.06411

    Example:
        >>> sequences, lengths = torch.tensor([0, 1, 1, 1]), torch.tensor([1, 3])
        >>> ld_token_weights(sequences, lengths, torch.tensor([1, 1]), ld_alpha=0.5).tolist()
        [1.0, 1.0, 0.5, 0.5]
    """
    if not 0 <= ld_alpha <= 1:
        raise ValueError(f"ld_alpha must lie in [0, 1], got {ld_alpha}")
    if lengths.shape != shared_lengths.shape:
        raise ValueError(f"lengths {tuple(lengths.shape)} and shared_lengths {tuple(shared_lengths.shape)} differ")
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(len(sequences), device=sequences.device) - starts[sequences]
    return 1.0 - (1.0 - ld_alpha) * (position >= shared_lengths[sequences]).float()


def wpo_weights(logprobs: Tensor, log_sum_squared_probs: Tensor, sequences: Tensor, lengths: Tensor) -> Tensor:
    """WPO: how likely the policy is to write a response itself, so that off-policy pairs weigh less.

    A pair's loss is multiplied by the weights of both of its responses. Dividing each token's probability by what the
    policy's own samples have on average makes the weight of such a sample about 1.

    Args:
        logprobs: (N,) policy log-probability of every scored token, in nats.
        log_sum_squared_probs: (N,) log of the sum of squared probabilities over the vocabulary, per token.
        sequences: (N,) int64, the sequence that each scored token belongs to.
        lengths: (L,) scored tokens of each sequence.

    Returns:
        (L,) weights, detached.

    Raises:
        ValueError: if the (N,) tensors differ in shape.

    Source:
        Zhou et al. (2024), eq. 2, https://arxiv.org/abs/2406.11827

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> wpo_weights(half, half, torch.tensor([0, 0]), torch.tensor([2]))
        tensor([1.])
    """
    if not logprobs.shape == log_sum_squared_probs.shape == sequences.shape:
        shapes = [tuple(tensor.shape) for tensor in (logprobs, log_sum_squared_probs, sequences)]
        raise ValueError(f"logprobs, log_sum_squared_probs and sequences differ in shape: {shapes}")
    aligned = (logprobs - log_sum_squared_probs).detach()
    sums = aligned.new_zeros(lengths.shape).index_add(0, sequences, aligned)
    return torch.exp(sums / lengths.clamp(min=1))
