"""Ranks decide who is better, margins say by how much."""

from __future__ import annotations

import pytest

from datamodules.encoding.preferences import preferences_of
from datamodules.records import Record, Response


def ranked(*ranks, scores=None, **more):
    scores = scores or [None] * len(ranks)
    return Record("ranked", "", tuple(map(Response, map(str, ranks), ranks, scores)), **more)


def test_every_pair_of_unequal_rank():
    assert preferences_of(ranked(1, 0, 2, 1)) == ((1, 0, 0.0), (1, 3, 0.0), (1, 2, 0.0), (0, 2, 0.0), (3, 2, 0.0))


def test_best_against_worst():
    assert preferences_of(ranked(1, 0, 2, 1), "best_worst") == ((1, 2, 0.0),)


@pytest.mark.parametrize("pairing", ["all", "best_worst"])
def test_nothing_is_preferred(pairing):
    assert preferences_of(ranked(), pairing) == preferences_of(ranked(0), pairing) == ()
    assert preferences_of(ranked(0, 0, 0), pairing) == ()


def test_margins():
    assert preferences_of(ranked(0, 1, scores=[9.0, 6.5])) == ((0, 1, 0.0),)
    three = ranked(0, 1, 2, scores=[9.0, 6.5, None])
    assert preferences_of(three, margins="scores") == ((0, 1, 2.5), (0, 2, 0.0), (1, 2, 0.0))
    assert preferences_of(ranked(0, 1, scores=[9.0, 6.5], margin=1.0), margins="scores") == ((0, 1, 1.0),)
    assert preferences_of(ranked(1, 0, margin=-1.0)) == ((1, 0, 1.0),)
    assert preferences_of(ranked(0, 1, 2, margin=1.0))[0] == (0, 1, 0.0)


def test_only_those_that_are_left():
    record = ranked(0, 1, 2, scores=[9.0, 6.0, 1.0])
    assert preferences_of(record, margins="scores", kept=(1, 2)) == ((0, 1, 5.0),)
    assert preferences_of(record, "best_worst", margins="scores", kept=(0, 1)) == ((0, 1, 3.0),)
