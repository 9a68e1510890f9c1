"""Transport losses: the distribution of chosen rewards should lie above that of the rejected ones.

Alignment via Optimal Transport (Melnyk et al., 2024, https://arxiv.org/abs/2406.05882): sorting both sides couples
them optimally, so a response is compared across the batch and not only with its own partner. These losses must see all
pairs of a step at once (mark ``whole_batch``); sorted per micro-batch, as in TRL, they depend on the split. B counts
pairs.
"""

from __future__ import annotations

from torch import Tensor

from lit_rlhf.losses.marks import whole_batch
from lit_rlhf.losses.preference import conservative_loss
from lit_rlhf.losses.shapes import check_pairs


@whole_batch
def aot_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """AOT for paired data: the policy's margins, sorted, should exceed the reference's margins, sorted.

    Args:
        chosen_logprobs: (B,) policy log-probabilities of the chosen responses, in nats.
        rejected_logprobs: (B,) the same of the rejected ones.
        ref_chosen_logprobs: (B,) reference log-probabilities of the chosen responses.
        ref_rejected_logprobs: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.01-0.1 usual.
        label_smoothing: probability that a label is flipped, in [0, 0.5).

    Returns:
        (B,) losses by quantile, not by pair.

    Raises:
        ValueError: if the shapes are not (B,), or ``label_smoothing`` is out of range.

    Source:
        Melnyk et al. (2024), section 3, https://arxiv.org/abs/2406.05882

    Example:
        >>> import torch
        >>> chosen, ref_chosen, zeros = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]), torch.zeros(2)
        >>> aot_loss(chosen, zeros, ref_chosen, zeros)
        tensor([0.6931, 0.6931])
    """
    check_pairs(
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        ref_chosen_logprobs=ref_chosen_logprobs,
        ref_rejected_logprobs=ref_rejected_logprobs,
    )
    policy = (chosen_logprobs - rejected_logprobs).sort().values
    reference = (ref_chosen_logprobs - ref_rejected_logprobs).sort().values
    return conservative_loss(policy, reference, beta=beta, label_smoothing=label_smoothing)


@whole_batch
def aot_unpaired_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """AOT for unpaired data: the chosen log-ratios, sorted, should exceed the rejected ones, sorted.

    Args:
        chosen_logratios: (B,) policy minus reference of the chosen responses, in nats.
        rejected_logratios: (B,) the same of the rejected ones.
        beta: strength of the pull to the reference, 0.01-0.1 usual.
        label_smoothing: probability that a label is flipped, in [0, 0.5).

    Returns:
        (B,) losses by quantile, not by pair.

    Raises:
        ValueError: if the shapes are not (B,), or ``label_smoothing`` is out of range.

    Source:
        Melnyk et al. (2024), section 3, https://arxiv.org/abs/2406.05882

    Example:
        >>> import torch
        >>> aot_unpaired_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0]))
        tensor([0.6931, 0.6931])
    """
    check_pairs(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    chosen, rejected = chosen_logratios.sort().values, rejected_logratios.sort().values
    return conservative_loss(chosen, rejected, beta=beta, label_smoothing=label_smoothing)
