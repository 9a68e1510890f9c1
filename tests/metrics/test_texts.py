"""Texts that are imitated: sums, counts and rows by hand, by source as well, no matter the split."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.texts import TEXT_METRICS, text_rows, text_sums
from lit_rlhf.types import Forest, Instructions, Segment

SCORED = ([False, True, True], [False, False, True, True, True], [False, False])
LOGPROBS = torch.tensor([-1.0, -0.5, -2.0, -0.25, -0.25])
LIKELIEST = torch.tensor([False, True, False, True, True])
ENTROPY = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.5])


def texts(members):
    forest = Forest.pack([Segment(range(len(SCORED[member])), SCORED[member])] for member in members)
    return Instructions(forest, tuple(f"f:{member + 1}" for member in members), tuple("aba"[m] for m in members))


def means_of(*updates):
    means = Means(TEXT_METRICS)
    for update in updates:
        means.update(update)
    return {name: float(value) for name, value in means.compute().items()}


def test_means_by_hand():
    found = means_of(text_sums(texts([0, 1, 2]), LOGPROBS, LIKELIEST, ENTROPY))
    assert found == pytest.approx(
        {
            "nll": 0.8,
            "token_accuracy": 0.6,
            "entropy": 1.0,
            "length/text": 10 / 3,
            "length/trained": 5 / 3,
            "nll/a": 0.75,
            "nll/b": 2.5 / 3,
            "token_accuracy/a": 0.5,
            "token_accuracy/b": 2 / 3,
        }
    )


def test_the_split_changes_nothing():
    parts = [
        text_sums(texts([0]), LOGPROBS[:2], LIKELIEST[:2], ENTROPY[:2]),
        text_sums(texts([1, 2]), LOGPROBS[2:], LIKELIEST[2:], ENTROPY[2:]),
    ]
    assert means_of(*parts) == pytest.approx(means_of(text_sums(texts([0, 1, 2]), LOGPROBS, LIKELIEST, ENTROPY)))


def test_rows():
    assert text_rows(texts([0, 1, 2]), LOGPROBS, LIKELIEST) == [
        {"row": "f:1", "source": "a", "logprob": -1.5, "length": 2, "token_accuracy": 0.5},
        {"row": "f:2", "source": "b", "logprob": -2.5, "length": 3, "token_accuracy": pytest.approx(2 / 3)},
        {"row": "f:3", "source": "a", "logprob": 0.0, "length": 0, "token_accuracy": 0.0},
    ]
