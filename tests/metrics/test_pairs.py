"""Pairs with implicit rewards: sums and counts by hand, no matter the split."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.losses.terms import PairLogprobs
from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.pairs import PAIR_METRICS, pair_rows, pair_sums
from lit_rlhf.types import Forest, PreferencePairs, Segment

# Four pairs: won and longer, lost and longer, won and shorter, a tie.
PAIRS = PairLogprobs(
    *(
        torch.tensor(column)
        for column in (
            [1.0, -1.0, 2.0, 0.5],
            [0.0, 1.0, 1.0, 0.5],
            [-1.0, -2.0, -3.0, -4.0],
            [-5.0, -6.0, -7.0, -8.0],
            [-2.0, -1.0, -5.0, -4.5],
            [-5.0, -7.0, -8.0, -8.5],
            [3.0, 3.0, 1.0, 2.0],
            [2.0, 1.0, 4.0, 2.0],
            [0.0, 0.0, 0.0, 0.0],
        )
    )
)


def means_of(*updates):
    means = Means(PAIR_METRICS)
    for update in updates:
        means.update(update)
    return {name: float(value) for name, value in means.compute().items()}


def sums(pairs=PAIRS, logratios=(0.0, 0.5), entropy=(1.0, 2.0)):
    return pair_sums(pairs, torch.tensor(logratios), torch.tensor(entropy), beta=0.5)


def test_pairs_by_hand():
    assert means_of(sums()) == pytest.approx(
        {
            "rewards/chosen": 0.5 * 2.5 / 4,
            "rewards/rejected": 0.5 * 2.5 / 4,
            "rewards/margin": 0.0,
            "rewards/accuracy": 2 / 3,  # the tie is no trial
            "rewards/ties": 1 / 4,
            "rewards/accuracy_longer": 1 / 2,
            "rewards/accuracy_shorter": 1.0,
            "logprobs/chosen": -2.5,
            "logprobs/rejected": -6.5,
            "kl": (math.exp(0.5) - 1 - 0.5) / 2,
            "entropy": 1.5,
            "length/chosen": 9 / 4,
            "length/rejected": 9 / 4,
        }
    )


def test_the_split_does_not_matter():
    first, rest = (PairLogprobs(*(column[part] for column in PAIRS)) for part in (slice(1), slice(1, 4)))
    split = means_of(sums(first, (0.0,), (1.0,)), sums(rest, (0.5,), (2.0,)))
    assert split == pytest.approx(means_of(sums()))


def test_what_counted_nothing_is_left_out():
    tie = PairLogprobs(*(column[3:] for column in PAIRS))
    assert not {"rewards/accuracy", "rewards/accuracy_longer", "data/dropped"} & set(means_of(sums(tie)))


def test_the_kl_estimate_survives_an_extreme_token():
    assert math.isfinite(means_of(sums(logratios=(-300.0, 0.0)))["kl"])


def test_sources_are_kept_apart_once_there_are_two():
    first, second = sums(), pair_sums(PAIRS, torch.zeros(2), torch.zeros(2), ["a", "b/c", "b/c", "b/c"], beta=0.5)
    one = pair_sums(PAIRS, torch.zeros(2), torch.zeros(2), ["a"] * 4, beta=0.5)
    assert set(means_of(first, one)) == set(means_of(first))
    found = means_of(second)
    assert found["rewards/accuracy/a"] == 1.0
    assert found["rewards/accuracy/b/c"] == 1 / 2  # the tie is no trial
    assert found["rewards/margin/b/c"] == pytest.approx((-1.0 + 0.5) / 3)
    assert {name: found[name] for name in means_of(first) if name not in ("kl", "entropy")} == pytest.approx(
        {name: value for name, value in means_of(first).items() if name not in ("kl", "entropy")}
    )


def pairs_of(rows):
    tree = [Segment([1], [False]), Segment([2], [True], 0), Segment([3], [True], 0)]
    chosen = torch.arange(0, 2 * len(rows), 2)
    forest = Forest.pack([tree] * len(rows))
    return PreferencePairs(forest, chosen, chosen + 1, torch.zeros(len(rows)), tuple(rows), ("a",) * len(rows))


def test_rows_for_a_file():
    rows = pair_rows(pairs_of(["a:1", "a:2", "a:3", "a:4"]), PAIRS, beta=0.5)
    assert rows[1] == {
        "row": "a:2",
        "source": "a",
        "chosen_reward": -0.5,
        "rejected_reward": 0.5,
        "margin": -1.0,
        "chosen_logprob": -2.0,
        "rejected_logprob": -6.0,
        "chosen_length": 3,
        "rejected_length": 1,
    }
