"""Losses of the log-ratio difference: worked numbers, a slow loop, properties from the papers, gradients, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses import preference

BETA, SMOOTHING = 0.3, 0.2


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def sigmoid(x):
    return math.exp(-softplus(-x))


# One pair at a time, in Python floats, from the papers: d is the reward difference, mean_d that of the mean log-ratios.
SLOW = {
    "sigmoid_loss": lambda d, mean_d, margin: softplus(-d),
    "conservative_loss": lambda d, mean_d, margin: (1 - SMOOTHING) * softplus(-d) + SMOOTHING * softplus(d),
    "robust_loss": lambda d, mean_d, margin: (
        ((1 - SMOOTHING) * softplus(-d) - SMOOTHING * softplus(d)) / (1 - 2 * SMOOTHING)
    ),
    "odpo_loss": lambda d, mean_d, margin: softplus(margin - d),
    "hinge_loss": lambda d, mean_d, margin: max(0.0, 1 - d),
    "ipo_loss": lambda d, mean_d, margin: (mean_d - 0.5 / BETA) ** 2,
    "sigmoid_norm_loss": lambda d, mean_d, margin: softplus(-BETA * mean_d),
    "exo_pair_loss": lambda d, mean_d, margin: (
        sigmoid(d) * math.log(sigmoid(d) / (1 - SMOOTHING)) + sigmoid(-d) * math.log(sigmoid(-d) / SMOOTHING)
    ),
    "discopop_loss": lambda d, mean_d, margin: softplus(-d) * sigmoid(-d / 0.05) + math.exp(-d) * sigmoid(d / 0.05),
}
TENSORS = {
    "ipo_loss": ("chosen_lengths", "rejected_lengths"),
    "sigmoid_norm_loss": ("chosen_lengths", "rejected_lengths"),
    "odpo_loss": ("margins",),
}
SMOOTHED = ("conservative_loss", "robust_loss", "exo_pair_loss")


def call(name, chosen, rejected, chosen_lengths=None, rejected_lengths=None, margins=None):
    """The loss by name, its further tensors picked by theirs."""
    further = {
        "chosen_lengths": torch.full_like(chosen, 2.0) if chosen_lengths is None else chosen_lengths,
        "rejected_lengths": torch.full_like(chosen, 3.0) if rejected_lengths is None else rejected_lengths,
        "margins": torch.full_like(chosen, 0.5) if margins is None else margins,
    }
    settings = {"label_smoothing": SMOOTHING} if name in SMOOTHED else {}
    tensors = {key: further[key] for key in TENSORS.get(name, ())}
    return getattr(preference, name)(chosen, rejected, **tensors, beta=BETA, **settings)


@pytest.mark.parametrize("name", SLOW)
@settings(deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.integers(1, 9), st.integers(1, 9), st.floats(0, 3)),
        min_size=1,
        max_size=5,
    )
)
def test_equals_a_slow_loop(name, pairs):
    chosen, rejected, chosen_lengths, rejected_lengths, margins = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    losses = call(name, chosen, rejected, chosen_lengths, rejected_lengths, margins)
    slow = [SLOW[name](BETA * (c - r), c / n_c - r / n_r, margin) for c, r, n_c, n_r, margin in pairs]
    torch.testing.assert_close(losses, torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SLOW)
def test_gradient_prefers_the_chosen_response(name):
    chosen = torch.tensor([2.0, 3.0], requires_grad=True)
    rejected = torch.tensor([0.3, 0.4], requires_grad=True)
    call(name, chosen, rejected).sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


@pytest.mark.parametrize("name", SLOW)
def test_only_the_difference_counts(name):
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
    lengths = torch.ones(2)
    expected = call(name, chosen, rejected, lengths, lengths)
    torch.testing.assert_close(call(name, chosen + 4, rejected + 4, lengths, lengths), expected)
    assert not torch.allclose(call(name, chosen + 4, rejected, lengths, lengths), expected)


@pytest.mark.parametrize("name", SLOW)
def test_far_out_pairs_stay_finite(name):
    chosen = torch.tensor([3000.0, -3000.0], requires_grad=True)
    losses = call(name, chosen, torch.zeros(2))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()


@pytest.mark.parametrize("name", SLOW)
def test_refuses_what_would_broadcast(name):
    with pytest.raises(ValueError, match=r"one number per pair \(B,\), got chosen_logratios \(2,\), .*\(2, 1\)"):
        call(name, torch.zeros(2), torch.zeros(2, 1))


@pytest.mark.parametrize("name", ["sigmoid_loss", "sigmoid_norm_loss", "conservative_loss"])
def test_log_two_where_policy_and_reference_agree(name):
    losses = call(name, torch.zeros(3), torch.zeros(3))
    torch.testing.assert_close(losses, torch.full((3,), math.log(2)), rtol=0, atol=1e-7)


def test_dpo_by_hand():
    # beta * (1 - -3) = 2;  -log sigmoid(2) = log(1 + e^-2) = 0.126928
    torch.testing.assert_close(
        preference.sigmoid_loss(torch.tensor([1.0]), torch.tensor([-3.0]), beta=0.5), torch.tensor([0.126928])
    )


def test_ipo_by_hand():
    # 6 / 3 - 4 / 8 = 1.5;  1 / (2 * 0.25) = 2;  (1.5 - 2)^2 = 0.25
    six, four = torch.tensor([6.0]), torch.tensor([4.0])
    losses = preference.ipo_loss(six, four, torch.tensor([3.0]), torch.tensor([8.0]), beta=0.25)
    assert losses.tolist() == [0.25]


def test_an_empty_response_counts_as_one_token():
    zero = torch.zeros(1)
    assert preference.sigmoid_norm_loss(zero, zero, zero, zero).isfinite().all()


def test_robust_is_unbiased_under_flips():
    chosen, rejected = torch.tensor([0.4, -2.0]), torch.tensor([0.1, 3.0])
    clean = preference.robust_loss(chosen, rejected, label_smoothing=SMOOTHING)
    flipped = preference.robust_loss(rejected, chosen, label_smoothing=SMOOTHING)
    expected = preference.sigmoid_loss(chosen, rejected)
    torch.testing.assert_close((1 - SMOOTHING) * clean + SMOOTHING * flipped, expected)


def test_conservative_is_least_where_the_policy_is_as_sure_as_the_label():
    best = math.log((1 - SMOOTHING) / SMOOTHING) / BETA
    chosen = torch.tensor([best - 0.1, best, best + 0.1], requires_grad=True)
    call("conservative_loss", chosen, torch.zeros(3)).sum().backward()
    assert chosen.grad[0] < 0 < chosen.grad[2]
    assert abs(chosen.grad[1].item()) < 1e-7


def test_exo_is_zero_where_the_policy_is_as_sure_as_the_label():
    best = torch.tensor([math.log((1 - SMOOTHING) / SMOOTHING) / BETA])
    assert abs(call("exo_pair_loss", best, torch.zeros(1)).item()) < 1e-6


@pytest.mark.parametrize("name", ["conservative_loss", "robust_loss"])
def test_without_smoothing_it_is_dpo(name):
    chosen, rejected = torch.tensor([0.4, -2.0]), torch.tensor([0.1, 3.0])
    losses = getattr(preference, name)(chosen, rejected, label_smoothing=0.0)
    torch.testing.assert_close(losses, preference.sigmoid_loss(chosen, rejected))


def test_offset_grows_with_the_margin_and_zero_is_dpo():
    chosen, rejected = torch.full((2,), 0.4), torch.full((2,), 0.1)
    losses = preference.odpo_loss(chosen, rejected, torch.tensor([0.0, 2.0]), alpha=0.5)
    plain = preference.sigmoid_loss(chosen, rejected)
    assert losses[0] == plain[0]
    # beta * 0.3 - 0.5 * 2 = -0.97;  log(1 + e^0.97) = 1.291419
    assert losses[1].item() == pytest.approx(1.291419, abs=1e-6)


@pytest.mark.parametrize(("name", "bad"), [("conservative_loss", 0.5), ("robust_loss", 0.5), ("robust_loss", -0.1)])
def test_label_smoothing_out_of_range(name, bad):
    with pytest.raises(ValueError, match=rf"label_smoothing must lie in \[0, 0.5\), got {bad}"):
        getattr(preference, name)(torch.zeros(1), torch.zeros(1), label_smoothing=bad)


@pytest.mark.parametrize("bad", [0.0, 0.5])
def test_exo_needs_label_smoothing(bad):
    with pytest.raises(ValueError, match=rf"label_smoothing of exo_pair_loss must lie in \(0, 0.5\), got {bad}"):
        preference.exo_pair_loss(torch.zeros(1), torch.zeros(1), label_smoothing=bad)


def test_discopop_starts_on_its_hump():
    chosen = torch.zeros(1, requires_grad=True)
    call("discopop_loss", chosen, torch.zeros(1)).sum().backward()
    # beta * (m' * (1 - log 2) - m - (1 - m) / 2) with m = 1/2, m' = 1 / (4 * 0.05)
    assert chosen.grad.item() == pytest.approx(BETA * (5 * (1 - math.log(2)) - 0.75), rel=1e-5)


def test_discopop_tau_out_of_range():
    with pytest.raises(ValueError, match=r"tau of discopop_loss must lie in \(0, 1\), got 1.0"):
        preference.discopop_loss(torch.zeros(1), torch.zeros(1), tau=1.0)


def test_statistics_are_detached_and_keep_ties_apart():
    chosen = torch.tensor([2.0, 1.0, -1.0], requires_grad=True)
    seen = preference.preference_statistics(chosen, torch.tensor([1.0, 1.0, 1.0]), beta=0.5)
    assert not any(tensor.requires_grad for tensor in seen)
    assert seen.chosen_rewards.tolist() == [1.0, 0.5, -0.5]
    assert seen.rejected_rewards.tolist() == [0.5, 0.5, 0.5]
    assert seen.margins.tolist() == [0.5, 0.0, -1.0]
    assert seen.wins.tolist() == [True, False, False]
    assert seen.ties.tolist() == [False, True, False]


def test_statistics_refuse_other_shapes():
    with pytest.raises(ValueError, match="one number per pair"):
        preference.preference_statistics(torch.zeros(2), torch.zeros(3))
