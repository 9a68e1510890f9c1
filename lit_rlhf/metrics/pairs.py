"""What is watched about preference pairs whose rewards are implicit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.losses.preference import preference_statistics
from lit_rlhf.losses.terms import PairLogprobs
from lit_rlhf.metrics.data import DATA_METRICS
from lit_rlhf.types import PreferencePairs

PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margin",
    "rewards/accuracy",
    "rewards/ties",
    "rewards/accuracy_longer",
    "rewards/accuracy_shorter",
    "logprobs/chosen",
    "logprobs/rejected",
    "kl",
    "entropy",
    "length/chosen",
    "length/rejected",
    *DATA_METRICS,
)
"""Means that every preference algorithm logs; docs/algorithms/dpo.md says what each one is."""


def pair_sums(
    pairs: PairLogprobs, logratios: Tensor, entropy: Tensor, sources: Sequence[str] = (), *, beta: float
) -> dict[str, tuple[Tensor, Tensor | float]]:
    """Sum and count of every metric of preference pairs.

    Args:
        pairs: of one micro-batch; each column (B,).
        sources: B names of sources, whose accuracies and margins are kept apart as well; none = not.
        logratios: (N,) policy minus reference of every scored token, in nats, detached.
        entropy: (N,) of the policy at every scored token, in nats.
        beta: scale of the implicit rewards.
    """
    seen = preference_statistics(pairs.chosen_logratios, pairs.rejected_logratios, beta=beta)
    num_pairs, num_tokens = len(seen.wins), len(logratios)
    longer = (pairs.chosen_lengths > pairs.rejected_lengths) & ~seen.ties
    shorter = (pairs.chosen_lengths < pairs.rejected_lengths) & ~seen.ties
    means = {
        "rewards/chosen": seen.chosen_rewards,
        "rewards/rejected": seen.rejected_rewards,
        "rewards/margin": seen.margins,
        "rewards/ties": seen.ties,
        "logprobs/chosen": pairs.chosen_logprobs,
        "logprobs/rejected": pairs.rejected_logprobs,
        "length/chosen": pairs.chosen_lengths,
        "length/rejected": pairs.rejected_lengths,
    }
    sums: dict[str, tuple[Tensor, Tensor | float]] = {name: (column.sum(), num_pairs) for name, column in means.items()}
    sums["rewards/accuracy"] = (seen.wins.sum(), num_pairs - seen.ties.sum())
    sums["rewards/accuracy_longer"] = ((seen.wins & longer).sum(), longer.sum())
    sums["rewards/accuracy_shorter"] = ((seen.wins & shorter).sum(), shorter.sum())
    sums["kl"] = ((torch.expm1(logratios.clamp(max=20.0)) - logratios).sum(), num_tokens)
    sums["entropy"] = (entropy.sum(), num_tokens)
    for source in sorted(set(sources)):
        mine = torch.tensor([name == source for name in sources], device=entropy.device)
        sums[f"rewards/accuracy/{source}"] = ((seen.wins & mine).sum(), (mine & ~seen.ties).sum())
        sums[f"rewards/margin/{source}"] = (seen.margins[mine].sum(), mine.sum())
    return sums


def pair_rows(batch: PreferencePairs, pairs: PairLogprobs, *, beta: float) -> list[dict[str, Any]]:
    """One dictionary per pair: its address, implicit rewards (nats times beta), log-probabilities (nats) and lengths.

    Args:
        batch: where the pairs come from.
        pairs: their log-probabilities; each column (B,).
        beta: scale of the implicit rewards.
    """
    seen = preference_statistics(pairs.chosen_logratios, pairs.rejected_logratios, beta=beta)
    columns = {
        "chosen_reward": seen.chosen_rewards,
        "rejected_reward": seen.rejected_rewards,
        "margin": seen.margins,
        "chosen_logprob": pairs.chosen_logprobs,
        "rejected_logprob": pairs.rejected_logprobs,
        "chosen_length": pairs.chosen_lengths.int(),
        "rejected_length": pairs.rejected_lengths.int(),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {"row": row, "source": source, **dict(zip(columns, numbers, strict=True))}
        for row, source, numbers in zip(batch.rows, batch.sources, values, strict=True)
    ]
