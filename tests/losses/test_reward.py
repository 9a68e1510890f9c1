"""Reward losses: worked numbers, slow loops, likelihoods that sum to 1, gradients, extremes, refusals."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses import reward

SMOOTHING, SCALE, THRESHOLD, NU, DELTA = 0.2, 0.7, 0.4, 0.6, 0.8
PAIRED = {
    "bradley_terry_loss": ("margins", {"label_smoothing": SMOOTHING, "margin_scale": SCALE}),
    "centring_loss": (None, {}),
    "tied_bradley_terry_loss": ("ties", {"threshold": THRESHOLD}),
    "davidson_loss": ("ties", {"nu": NU}),
}
ALONE = {"regression_loss": {}, "huber_loss": {"delta": DELTA}, "step_loss": {}}


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def rao_kupper(c, r, tie):
    """Rao and Kupper (1967) by worth e^score and theta, as printed."""
    better, worse, theta = math.exp(c), math.exp(r), math.exp(THRESHOLD)
    won, lost = better / (better + theta * worse), worse / (worse + theta * better)
    return -math.log((theta**2 - 1) * won * lost if tie else won)


def davidson(c, r, tie):
    """Davidson (1970) by worth e^score."""
    better, worse = math.exp(c), math.exp(r)
    equal = NU * math.sqrt(better * worse)
    return -math.log((equal if tie else better) / (better + worse + equal))


SLOW = {
    "bradley_terry_loss": lambda c, r, margin, tie: (
        (1 - SMOOTHING) * softplus(-(c - r - SCALE * margin)) + SMOOTHING * softplus(c - r - SCALE * margin)
    ),
    "centring_loss": lambda c, r, margin, tie: c * c + 2 * c * r + r * r,
    "tied_bradley_terry_loss": lambda c, r, margin, tie: rao_kupper(c, r, tie),
    "davidson_loss": lambda c, r, margin, tie: davidson(c, r, tie),
}


def call(name, chosen, rejected, margins=None, ties=None):
    """The pair loss by name, its further tensor picked by its name."""
    further, options = PAIRED[name]
    given = {
        "margins": torch.full_like(chosen, 0.5) if margins is None else margins,
        "ties": torch.zeros_like(chosen, dtype=torch.bool) if ties is None else ties,
    }
    tensors = [given[further]] if further else []
    return getattr(reward, name)(chosen, rejected, *tensors, **options)


@pytest.mark.parametrize("name", SLOW)
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 3), st.booleans()), min_size=1, max_size=5)
)
def test_pairs_equal_a_slow_loop(name, pairs):
    chosen, rejected, margins, ties = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    slow = [SLOW[name](*pair) for pair in pairs]
    torch.testing.assert_close(
        call(name, chosen, rejected, margins, ties.bool()),
        torch.tensor(slow, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-8,
    )


def test_bradley_terry_by_hand():
    # 3 - 0 - 1 = 2;  -log sigmoid(2) = log(1 + e^-2) = 0.126928
    loss = reward.bradley_terry_loss(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([1.0]))
    torch.testing.assert_close(loss, torch.tensor([0.126928]))


@pytest.mark.parametrize("name", ["bradley_terry_loss", "tied_bradley_terry_loss", "davidson_loss"])
def test_gradient_prefers_the_chosen_response(name):
    chosen, rejected = (torch.tensor(scores, requires_grad=True) for scores in ([0.5, -3.0], [0.6, 1.0]))
    call(name, chosen, rejected).sum().backward()
    assert (chosen.grad < 0).all()
    torch.testing.assert_close(rejected.grad, -chosen.grad)


@pytest.mark.parametrize("name", ["tied_bradley_terry_loss", "davidson_loss"])
def test_a_tie_draws_the_scores_together_and_has_no_sides(name):
    chosen, rejected = torch.tensor([2.0, -1.0, 0.3], requires_grad=True), torch.tensor([0.0, 1.0, 0.3])
    ties = torch.ones(3, dtype=torch.bool)
    losses = call(name, chosen, rejected, ties=ties)
    losses.sum().backward()
    assert chosen.grad[0] > 0 > chosen.grad[1]
    assert float(chosen.grad[2]) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(call(name, rejected, chosen, ties=ties), losses)


@pytest.mark.parametrize("name", ["tied_bradley_terry_loss", "davidson_loss"])
def test_won_lost_and_tied_are_all_there_is(name):
    first, second = torch.tensor([0.0, 3.0, -7.0], dtype=torch.float64), torch.tensor([0.0, 1.0, 0.5]).double()
    won, lost = call(name, first, second), call(name, second, first)
    tied = call(name, first, second, ties=torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(sum(torch.exp(-losses) for losses in (won, lost, tied)), torch.ones(3).double())


def test_centring_pulls_the_sum_to_nought():
    chosen, rejected = (torch.tensor(scores, requires_grad=True) for scores in ([2.0, -3.0], [1.0, 1.0]))
    reward.centring_loss(chosen, rejected).sum().backward()
    assert chosen.grad.tolist() == rejected.grad.tolist() == [6.0, -4.0]


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("name", PAIRED)
def test_far_out_scores_stay_finite(name, tie):
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    losses = call(name, chosen, torch.zeros(2), ties=torch.full((2,), tie))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()


# Plackett-Luce


def likelihood(scores, ranks):
    """Sum of the probabilities of all orders that the ranks allow; those of the worst rank are left out of them."""
    chosen = [at for at in range(len(ranks)) if ranks[at] < max(ranks)]
    total = 0.0
    for order in permutations(chosen):
        if [ranks[at] for at in order] != sorted(ranks[at] for at in order):
            continue
        left, probability = list(range(len(scores))), 1.0
        for at in order:
            probability *= math.exp(scores[at]) / sum(math.exp(scores[other]) for other in left)
            left.remove(at)
        total += probability
    return total


def plackett_luce(scores, ranks, lists=None):
    scores = torch.as_tensor(scores, dtype=torch.float64)
    return reward.plackett_luce_loss(scores, torch.tensor(ranks), torch.tensor(lists or [0] * len(ranks)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_a_strict_ranking_equals_a_slow_loop(scores, random):
    ranks = list(range(len(scores)))
    random.shuffle(ranks)
    assert plackett_luce(scores, ranks).tolist() == pytest.approx([-math.log(likelihood(scores, ranks))], rel=1e-9)


@pytest.mark.parametrize("ranks", [[0, 0, 1], [0, 1, 1, 1], [0, 1, 1, 2], [0, 0, 0, 3, 3], [2, 0, 2, 0, 2, 5]])
def test_equal_ranks_of_equal_scores_are_exact(ranks):
    scores = [0.7 * rank - 1.0 for rank in ranks]
    assert plackett_luce(scores, ranks).tolist() == pytest.approx([-math.log(likelihood(scores, ranks))], rel=1e-9)


def test_equal_ranks_of_unequal_scores_by_hand():
    # Worths 1, 3 (tied best) and 4: first choices share 8, the second leaves 8 - 4 / 2 = 6, two orders count.
    # -log(2 * 1 * 3 / (8 * 6)) = log 8; all orders would give -log(1/8 * 3/7 + 3/8 * 1/5) = 2.0477
    scores = [math.log(1.0), math.log(3.0), math.log(4.0)]
    assert plackett_luce(scores, [0, 0, 1]).tolist() == pytest.approx([math.log(8.0)])
    assert likelihood(scores, [0, 0, 1]) == pytest.approx(3 / 56 + 3 / 40)


def test_the_best_of_many_is_a_softmax():
    scores = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(plackett_luce(scores, [1, 0, 1, 1]), -scores.log_softmax(0)[1:2])


def test_a_list_of_two_is_bradley_terry():
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0])
    losses = reward.plackett_luce_loss(scores, torch.tensor([0, 1, 1, 0]), torch.tensor([4, 4, 9, 9]))
    expected = reward.bradley_terry_loss(scores[[0, 3]], scores[[1, 2]], torch.zeros(2))
    torch.testing.assert_close(losses, expected)


def test_lists_by_number_whatever_their_order_and_none_without_two_ranks():
    scores = [0.3, -1.0, 2.0, 0.1, 0.2, 0.9, 5.0]
    ranks, lists = [1, 0, 0, 1, 0, 0, 3], [8, 2, 8, 2, 5, 5, 6]
    expected = torch.cat([plackett_luce([-1.0, 0.1], [0, 1]), plackett_luce([2.0, 0.3], [0, 1])])
    torch.testing.assert_close(plackett_luce(scores, ranks, lists), expected)
    assert plackett_luce([1.0, 2.0], [0, 0]).shape == (0,)
    assert plackett_luce([], []).shape == (0,)


def test_gradient_lifts_the_best_and_lowers_the_worst():
    scores = torch.zeros(4, requires_grad=True)
    reward.plackett_luce_loss(scores, torch.tensor([3, 1, 1, 0]), torch.zeros(4)).sum().backward()
    assert scores.grad[3] < scores.grad[1] == scores.grad[2] < scores.grad[0]
    assert float(scores.grad.sum()) == pytest.approx(0, abs=1e-6)


def test_far_out_lists_stay_finite():
    scores = torch.tensor([1e4, -1e4, 0.0, 1e4, 1e4], requires_grad=True)
    losses = reward.plackett_luce_loss(scores, torch.tensor([2, 0, 1, 1, 2]), torch.zeros(5))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert scores.grad.isfinite().all()


# Grades and steps


def test_grades_by_hand():
    scores, grades = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 1.5, 4.0])
    torch.testing.assert_close(reward.regression_loss(scores, grades), torch.tensor([0.0, 0.25, 9.0]))
    # within delta d^2 / 2, beyond it delta (|d| - delta / 2)
    expected = torch.tensor([0.0, 0.125, DELTA * (3.0 - DELTA / 2)])
    torch.testing.assert_close(reward.huber_loss(scores, grades, delta=DELTA), expected)


def test_steps_by_hand():
    scores, labels = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([1.0, 0.0, 0.3])
    expected = [softplus(-2.0), softplus(2.0), 0.3 * softplus(1.0) + 0.7 * softplus(-1.0)]
    torch.testing.assert_close(reward.step_loss(scores, labels), torch.tensor(expected))
    torch.testing.assert_close(reward.step_loss(scores[:2], torch.tensor([True, False])), torch.tensor(expected[:2]))


@pytest.mark.parametrize("name", ALONE)
def test_gradient_goes_towards_the_label(name):
    scores = torch.tensor([3.0, -3.0, 1e4, -1e4], requires_grad=True)
    losses = getattr(reward, name)(scores, torch.tensor([0.5, 0.5, 0.0, 1.0]), **ALONE[name])
    losses.sum().backward()
    assert losses.isfinite().all()
    assert (scores.grad * scores > 0).all()


# Refusals


@pytest.mark.parametrize("name", PAIRED)
def test_refuses_pairs_that_would_broadcast(name):
    with pytest.raises(ValueError, match=r"one number per pair \(B,\), got chosen_scores \(2,\), .*\(2, 1\)"):
        call(name, torch.zeros(2), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("name", "unit"), [("regression_loss", "response"), ("huber_loss", "response"), ("step_loss", "step")]
)
def test_refuses_grades_and_steps_that_would_broadcast(name, unit):
    with pytest.raises(ValueError, match=rf"one number per {unit} .*\(2,\), .*\(2, 1\)"):
        getattr(reward, name)(torch.zeros(2), torch.zeros(2, 1))


def test_refuses_lists_that_would_broadcast():
    with pytest.raises(ValueError, match=r"one number per response \(R,\), got scores \(2,\), ranks \(2, 1\), lists"):
        reward.plackett_luce_loss(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2))


def test_refuses_settings_out_of_range():
    zeros, ties = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 0\.5\), got 0\.5"):
        reward.bradley_terry_loss(zeros, zeros, zeros, label_smoothing=0.5)
    with pytest.raises(ValueError, match="threshold must be above 0, got 0"):
        reward.tied_bradley_terry_loss(zeros, zeros, ties, threshold=0.0)
    with pytest.raises(ValueError, match="nu must be above 0, got -1"):
        reward.davidson_loss(zeros, zeros, ties, nu=-1.0)
    with pytest.raises(ValueError, match="delta must be above 0, got 0"):
        reward.huber_loss(zeros, zeros, delta=0.0)
