"""Scores of pairs, graded responses and judged steps: sums and counts by hand, no matter the split."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.scores import LENGTH_BUCKETS, SCORE_METRICS, grade_sums, score_sums, step_sums

# Won and longer by 10, lost and longer by 150, won and shorter by 60, a tie of 21 more, lost at equal length.
CHOSEN, REJECTED = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.5, 0.25])
CHOSEN_LENGTHS, REJECTED_LENGTHS = torch.tensor([30, 200, 40, 31, 7]), torch.tensor([20, 50, 100, 10, 7])
SOURCES = ["a", "b/c", "b/c", "b/c", "a"]


def means_of(*updates):
    means = Means(SCORE_METRICS)
    for update in updates:
        means.update(update)
    return {name: float(value) for name, value in means.compute().items()}


def sums(part=slice(None), sources=()):
    columns = (CHOSEN, REJECTED, CHOSEN_LENGTHS, REJECTED_LENGTHS)
    return score_sums(*(column[part] for column in columns), sources[part])


def test_pairs_by_hand():
    assert means_of(sums()) == pytest.approx(
        {
            "scores/chosen": 2.5 / 5,
            "scores/rejected": 2.75 / 5,
            "scores/margin": -0.25 / 5,
            "scores/accuracy": 2 / 4,  # the tie is no trial
            "scores/ties": 1 / 5,
            "scores/accuracy_longer": 1 / 2,
            "scores/accuracy_shorter": 1.0,
            "scores/accuracy_by_length/within_20": 1 / 2,
            "scores/accuracy_by_length/longer_by_over_100": 0.0,
            "scores/accuracy_by_length/shorter_by_21_to_100": 1.0,
            "length/chosen": 308 / 5,
            "length/rejected": 187 / 5,
        }
    )


def test_sources_are_kept_apart():
    found = means_of(sums(sources=SOURCES))
    apart = {name: value for name, value in found.items() if name.endswith(("/a", "/b/c"))}
    assert apart == pytest.approx(
        {
            "scores/accuracy/a": 1 / 2,
            "scores/accuracy/b/c": 1 / 2,
            "scores/ties/a": 0.0,
            "scores/ties/b/c": 1 / 3,
            "scores/margin/a": 0.75 / 2,
            "scores/margin/b/c": -1 / 3,
        }
    )
    assert {name: value for name, value in found.items() if name not in apart} == pytest.approx(means_of(sums()))


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_the_split_does_not_matter(cut):
    parts = [sums(part, SOURCES) for part in (slice(cut), slice(cut, 5))]
    assert means_of(*parts) == pytest.approx(means_of(sums(sources=SOURCES)))


def test_length_buckets_meet_without_gap_or_overlap():
    edges = [-101, -100, -21, -20, 0, 20, 21, 100, 101]
    bucket_of = []
    for longer_by in edges:
        one = torch.tensor([1.0])
        found = score_sums(one, 0 * one, torch.tensor([200 + longer_by]), torch.tensor([200]))
        bucket_of.append([name for name in LENGTH_BUCKETS if found[f"scores/accuracy_by_length/{name}"][1] == 1])
    over, some, near = ("_by_over_100", "_by_21_to_100", "within_20")
    shorter, longer = [f"shorter{over}", *2 * [f"shorter{some}"]], [*2 * [f"longer{some}"], f"longer{over}"]
    assert bucket_of == [[name] for name in (*shorter, near, near, near, *longer)]


def test_grades_by_hand():
    scores, grades = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, math.nan, 2.0])
    assert means_of(grade_sums(scores, grades)) == {"scores/squared_error": 2.5}
    found = means_of(grade_sums(scores, grades, ["a", "a", "b"]))
    assert found == {"scores/squared_error": 2.5, "scores/squared_error/a": 4.0, "scores/squared_error/b": 1.0}


def test_steps_by_hand():
    """Right and said so, right and missed, wrong and said so, wrong and missed, undecided, unknown, a score of 0."""
    scores = torch.tensor([2.0, -1.0, -3.0, 5.0, 9.0, 9.0, 0.0])
    labels = torch.tensor([1.0, 0.9, 0.0, 0.1, 0.5, math.nan, 1.0])
    expected = {"steps/accuracy": 2 / 4, "steps/right": 1 / 3, "steps/wrong": 1.0}
    assert means_of(step_sums(scores, labels)) == pytest.approx(expected)
    found = means_of(step_sums(scores, labels, ["a", "a", "a", "b", "b", "b", "b"]))
    assert found == pytest.approx({**expected, "steps/accuracy/a": 2 / 3, "steps/accuracy/b": 0.0})


def test_scores_keep_their_graph_out():
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    ones = torch.ones(2)
    for found in (score_sums(scores, ones, ones, ones, "ab"), grade_sums(scores, ones, "ab"), step_sums(scores, ones)):
        assert not any(total.requires_grad for total, _ in found.values())


def test_nothing_to_count():
    none = torch.zeros(0)
    assert means_of(score_sums(none, none, none, none), grade_sums(none, none), step_sums(none, none)) == {}
