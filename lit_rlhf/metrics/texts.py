"""What is watched about texts that are imitated.

Shape letters: N scored tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.metrics.data import DATA_METRICS
from lit_rlhf.types import Instructions

TEXT_METRICS = ("loss", "nll", "token_accuracy", "entropy", "length/text", "length/trained", *DATA_METRICS)
"""Means that instruction tuning logs; docs/algorithms/sft.md says what each one is."""


def text_sums(
    texts: Instructions, logprobs: Tensor, is_likeliest: Tensor, entropy: Tensor
) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Sum and count of every metric of texts but their loss; likelihood and accuracy by source as well.

    Args:
        texts: of one micro-batch.
        logprobs: (N,) of each scored token, in nats, detached.
        is_likeliest: (N,) bool, True = no other word was likelier.
        entropy: (N,) at each scored token, in nats, detached.
    """
    forest, num_tokens = texts.forest, len(logprobs)
    sums: dict[str, tuple[Tensor | float, Tensor | float]] = {
        "nll": (-logprobs.sum(), num_tokens),
        "token_accuracy": (is_likeliest.sum(), num_tokens),
        "entropy": (entropy.sum(), num_tokens),
        "length/text": (forest.num_tokens, len(texts.rows)),
        "length/trained": (num_tokens, len(texts.rows)),
    }
    for source in sorted(set(texts.sources)):
        of_source = torch.tensor([name == source for name in texts.sources], device=logprobs.device)
        mine = of_source[forest.sequences]
        sums[f"nll/{source}"] = (-logprobs[mine].sum(), mine.sum())
        sums[f"token_accuracy/{source}"] = (is_likeliest[mine].sum(), mine.sum())
    return sums


def text_rows(texts: Instructions, logprobs: Tensor, is_likeliest: Tensor) -> list[dict[str, Any]]:
    """One dictionary per text: its address, log-probability (nats), trained tokens, and share of likeliest ones.

    Args:
        texts: of one micro-batch.
        logprobs: (N,) of each scored token, in nats.
        is_likeliest: (N,) bool, True = no other word was likelier.
    """
    columns = torch.stack([logprobs, torch.ones_like(logprobs), is_likeliest.to(logprobs.dtype)])
    sums = columns.new_zeros(3, len(texts.rows)).index_add_(1, texts.forest.sequences, columns)
    return [
        {
            "row": row,
            "source": source,
            "logprob": logprob,
            "length": int(length),
            "token_accuracy": hits / max(length, 1.0),
        }
        for row, source, (logprob, length, hits) in zip(texts.rows, texts.sources, sums.T.tolist(), strict=True)
    ]
