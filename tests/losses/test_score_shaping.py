"""Score shaping: numbers by hand, edges, running moments against all at once, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses.score_shaping import (
    Moments,
    clipped_scores,
    normalised_scores,
    overlong_penalty,
    penalised_scores,
    replaced_scores,
    updated_moments,
)

SCORES, LENGTHS = torch.tensor([2.0, -3.0, 2.0, -3.0]), torch.tensor([9, 9, 3, 2])
FINISHED = torch.tensor([True, False, True, False])
NOTHING = (torch.zeros((), dtype=torch.float64),) * 3


def test_penalties_by_hand():
    got = penalised_scores(SCORES, LENGTHS, FINISHED, missing_eos_penalty=1.5, min_length=3, short_penalty=0.25)
    assert got.tolist() == [2.0, -4.5, 2.0, -4.75]  # three tokens are enough


def test_by_default_only_a_missing_end_costs():
    assert penalised_scores(SCORES, LENGTHS, FINISHED).tolist() == [2.0, -4.0, 2.0, -4.0]
    assert penalised_scores(SCORES, LENGTHS, FINISHED, missing_eos_penalty=0.0).tolist() == SCORES.tolist()


@given(st.floats(-100, 100))
def test_ending_is_better_whatever_the_scores_are(score):
    """Which a fixed score in place of the reward model's does not promise."""
    scores = torch.tensor([score, score], dtype=torch.float64)
    ended, cut = penalised_scores(scores, torch.tensor([5, 5]), torch.tensor([True, False])).tolist()
    assert ended > cut
    assert replaced_scores(scores, torch.tensor([True, False])).tolist() == [score, -1.0]


@pytest.mark.parametrize("change", [{"missing_eos_penalty": -1.0}, {"short_penalty": -1.0}])
def test_a_negative_penalty_would_be_a_prize(change):
    with pytest.raises(ValueError, match=rf"must not be below 0, got .*{next(iter(change))} -1.0"):
        penalised_scores(SCORES, LENGTHS, FINISHED, **change)


def test_a_cut_response_is_replaced_whatever_its_score():
    got = replaced_scores(torch.tensor([math.nan, 1.0]), torch.tensor([False, True]), missing_eos_score=-3.0)
    assert got.tolist() == [-3.0, 1.0]


def test_overlong_by_hand():
    """DAPO's own numbers, 16384 + 4096 tokens, and its eq. 13 in between: (16384 - length) / 4096."""
    lengths = torch.tensor([1, 16384, 17408, 20480, 30000])
    assert overlong_penalty(lengths, 20480, buffer=4096).tolist() == [0.0, 0.0, -0.25, -1.0, -1.0]
    assert overlong_penalty(lengths, 20480, buffer=4096, factor=2.0).tolist() == [0.0, 0.0, -0.5, -2.0, -2.0]


@pytest.mark.parametrize("buffer", [0, -1, 21])
def test_overlong_buffer_out_of_range(buffer):
    with pytest.raises(ValueError, match=rf"buffer must lie in \(0, max_length 20\], got {buffer}"):
        overlong_penalty(LENGTHS, 20, buffer=buffer)


def test_clipped_scores():
    got = clipped_scores(torch.tensor([-11.0, -9.0, 0.0, math.inf, math.nan]))
    torch.testing.assert_close(got, torch.tensor([-10.0, -9.0, 0.0, 10.0, math.nan]), equal_nan=True)
    assert clipped_scores(torch.tensor([-11.0]), clip=5.0).tolist() == [-5.0]
    with pytest.raises(ValueError, match=r"clip must be above 0, got 0.0"):
        clipped_scores(SCORES, clip=0.0)


def test_moments_by_hand():
    """1, 2, 3 and then 10: mean 4, squared distances 9 + 4 + 1 + 36 = 50, std sqrt(50 / 3)."""
    moments = updated_moments(*updated_moments(*NOTHING, torch.tensor([1.0, 2.0, 3.0])), torch.tensor([10.0]))
    assert [float(each) for each in moments] == [4.0, 4.0, 50.0]
    assert float(moments.std) == pytest.approx(math.sqrt(50 / 3))


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20), st.lists(st.integers(0, 20), max_size=4))
def test_moments_do_not_depend_on_when_scores_came(scores, cuts):
    scores, moments = torch.tensor(scores, dtype=torch.float64), Moments(*NOTHING)
    for part in torch.tensor_split(scores, sorted(cuts)):
        moments = updated_moments(*moments, part)
    assert moments.num_scores == len(scores)
    torch.testing.assert_close(moments.mean, scores.mean(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.m2, ((scores - scores.mean()) ** 2).sum(), rtol=1e-9, atol=1e-9)


def test_scores_far_from_nought_keep_their_spread():
    """In the float32 that scores come in, the squares of these would be off in the fourth digit."""
    scores = 10_000 + torch.randn(1000, generator=torch.Generator().manual_seed(0)) / 100
    moments = updated_moments(*NOTHING, scores)
    assert moments.mean.dtype == torch.float64
    torch.testing.assert_close(moments.std, scores.double().std(), rtol=1e-9, atol=0)


def test_equal_scores_have_no_spread_whatever_rounding_makes_of_them():
    moments = Moments(*(torch.zeros(()),) * 3)
    for count in range(1, 30):
        moments = updated_moments(*moments, torch.full((count,), 0.7))
    assert moments.m2 > 0
    assert moments.std == 0


@pytest.mark.parametrize("scores", [[], [3.0], [0.7] * 9])
def test_no_spread_is_known(scores):
    moments = updated_moments(*NOTHING, torch.tensor(scores))
    assert moments.std == 0.0
    got = normalised_scores(torch.tensor([3.0, 4.0]), moments.mean, moments.std)
    torch.testing.assert_close(got, torch.tensor([3.0, 4.0]) - float(moments.mean))


def test_a_broken_spread_is_seen():
    assert normalised_scores(torch.tensor([1.0]), 0.0, math.nan).isnan().all()


def test_normalised_scores_by_hand():
    assert normalised_scores(torch.tensor([1.0, 4.0]), 2.0, 0.5).tolist() == [-2.0, 4.0]
    assert normalised_scores(torch.tensor([1.0, 4.0]), 0.0, 0.5).tolist() == [2.0, 8.0]  # scaled only
    assert normalised_scores(torch.tensor([1.0]), *NOTHING[:2]).dtype == torch.float32


def test_shapes_are_refused():
    matrix = torch.zeros(4, 1)
    for call in (
        lambda: penalised_scores(SCORES, matrix, FINISHED),
        lambda: replaced_scores(SCORES, matrix),
        lambda: overlong_penalty(matrix, 9, buffer=1),
        lambda: clipped_scores(matrix),
        lambda: updated_moments(*NOTHING, matrix),
        lambda: normalised_scores(matrix, 0.0, 1.0),
    ):
        with pytest.raises(ValueError, match=r"per sequence \(L,\), got .*\(4, 1\)"):
            call()
