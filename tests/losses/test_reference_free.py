"""Reference-free losses: worked numbers, a slow loop, gradients, edges, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses.reference_free import cpo_loss, orpo_loss, sft_loss, simpo_loss

PAIRS = st.lists(
    st.tuples(st.floats(-40, -0.1), st.floats(-40, -0.1), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5
)


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def log_odds(p):
    return math.log(p / (1 - p))


def columns(pairs):
    return torch.tensor(pairs, dtype=torch.float64).unbind(1)


def check(losses, slow):
    torch.testing.assert_close(losses, torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(PAIRS)
def test_simpo_equals_a_slow_loop(pairs):
    slow = [softplus(0.7 - 1.5 * (c / n_c - r / n_r)) for c, r, n_c, n_r in pairs]
    check(simpo_loss(*columns(pairs), beta=1.5, gamma=0.7), slow)


@settings(deadline=None)
@given(PAIRS)
def test_cpo_equals_a_slow_loop(pairs):
    chosen, rejected, chosen_lengths, _ = columns(pairs)
    slow = [0.9 * softplus(0.3 * (r - c)) + 0.1 * softplus(0.3 * (c - r)) - 0.5 * c / n_c for c, r, n_c, _ in pairs]
    check(cpo_loss(chosen, rejected, chosen_lengths, beta=0.3, label_smoothing=0.1, nll_coef=0.5), slow)


@settings(deadline=None)
@given(PAIRS)
def test_orpo_equals_a_slow_loop(pairs):
    slow = [
        0.2 * softplus(log_odds(math.exp(r / n_r)) - log_odds(math.exp(c / n_c))) - 0.5 * c / n_c
        for c, r, n_c, n_r in pairs
    ]
    check(orpo_loss(*columns(pairs), beta=0.2, nll_coef=0.5), slow)


def test_simpo_by_hand():
    # 2 * (-6 / 3 - -8 / 2) - 1 = 3;  log(1 + e^-3) = 0.048587
    losses = simpo_loss(*(torch.tensor([x]) for x in (-6.0, -8.0, 3.0, 2.0)), beta=2.0, gamma=1.0)
    assert losses.item() == pytest.approx(0.048587, abs=1e-6)


def test_orpo_by_hand():
    # odds of 3/4 and 1/4 are 3 and 1/3: log odds ratio log 9, -log sigmoid = log(10/9); plus -log(3/4)
    chosen, rejected, one = torch.tensor([0.75]).log(), torch.tensor([0.25]).log(), torch.ones(1)
    expected = 0.5 * math.log(10 / 9) - math.log(0.75)
    assert orpo_loss(chosen, rejected, one, one, beta=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_sft_returns_sums():
    assert sft_loss(torch.tensor([-3.0, -0.5])).tolist() == [3.0, 0.5]


@pytest.mark.parametrize("loss", [simpo_loss, orpo_loss])
def test_gradient_prefers_the_chosen_response(loss):
    chosen, rejected = (torch.tensor([-3.0, -9.0], requires_grad=True) for _ in range(2))
    lengths = torch.tensor([3.0, 2.0])
    loss(chosen, rejected, lengths, lengths).sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


def test_cpo_gradient_without_and_with_likelihood():
    chosen, rejected, lengths = torch.tensor([-3.0], requires_grad=True), torch.tensor([-3.0]), torch.tensor([2.0])
    (bare,) = torch.autograd.grad(cpo_loss(chosen, rejected, lengths, nll_coef=0.0), chosen)
    (full,) = torch.autograd.grad(cpo_loss(chosen, rejected, lengths), chosen)
    torch.testing.assert_close(bare, torch.tensor([-0.05]))  # -beta / 2
    torch.testing.assert_close(full, torch.tensor([-0.55]))  # and -1 / 2 tokens


@pytest.mark.parametrize("logprob", [0.0, -1e-9, -5000.0])
def test_orpo_stays_finite_at_certain_and_impossible_responses(logprob):
    chosen = torch.tensor([logprob], requires_grad=True)
    one = torch.ones(1)
    for losses in (orpo_loss(chosen, -one, one, one), orpo_loss(-one, chosen, one, one)):
        (gradient,) = torch.autograd.grad(losses.sum(), chosen)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [simpo_loss, orpo_loss])
def test_length_is_normalised(loss):
    chosen, rejected, lengths = torch.tensor([-3.0]), torch.tensor([-5.0]), torch.tensor([4.0])
    twice = loss(2 * chosen, 2 * rejected, 2 * lengths, 2 * lengths)
    torch.testing.assert_close(twice, loss(chosen, rejected, lengths, lengths))


def test_refusals():
    two, column = torch.full((2,), -1.0), torch.full((2, 1), -1.0)
    with pytest.raises(ValueError, match=r"got chosen_logprobs \(2, 1\)"):
        sft_loss(column)
    with pytest.raises(ValueError, match=r"rejected_lengths \(2, 1\)"):
        simpo_loss(two, two, -two, -column)
    with pytest.raises(ValueError, match=r"rejected_lengths \(2, 1\)"):
        orpo_loss(two, two, -two, -column)
    with pytest.raises(ValueError, match=r"chosen_lengths \(2, 1\)"):
        cpo_loss(two, two, -column)
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 0.5\), got 0.5"):
        cpo_loss(two, two, -two, label_smoothing=0.5)
