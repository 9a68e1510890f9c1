"""Losses that push each response by itself: a slow loop, gradients of each side, worked numbers, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses import anchored

BETA = 0.3


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def sigmoid(x):
    return math.exp(-softplus(-x))


# One pair at a time, in Python floats, from the papers: c and r are log-ratios.
SLOW = {
    "nca_pair_loss": lambda c, r: softplus(-BETA * c) + (softplus(BETA * c) + softplus(BETA * r)) / 2,
    "bco_pair_loss": lambda c, r: softplus(-BETA * c) + softplus(BETA * r),
    "sppo_hard_loss": lambda c, r: (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
    "apo_zero_loss": lambda c, r: 1 - sigmoid(BETA * c) + sigmoid(BETA * r),
    "apo_down_loss": lambda c, r: sigmoid(BETA * c) + 1 - sigmoid(BETA * (c - r)),
}


@pytest.mark.parametrize("name", SLOW)
@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=5))
def test_equals_a_slow_loop(name, pairs):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    slow = torch.tensor([SLOW[name](c, r) for c, r in pairs], dtype=torch.float64)
    torch.testing.assert_close(getattr(anchored, name)(chosen, rejected, beta=BETA), slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "chosen_sign", "rejected_sign"),
    [
        ("nca_pair_loss", -1, 1),
        ("bco_pair_loss", -1, 1),
        ("sppo_hard_loss", -1, 1),
        ("apo_zero_loss", -1, 1),
        ("apo_down_loss", 1, 1),  # both down, here where the rejected one lies lower
    ],
)
def test_gradient_signs(name, chosen_sign, rejected_sign):
    chosen = torch.tensor([0.2, -3.0], requires_grad=True)
    rejected = torch.tensor([-2.0, -7.0] if name == "apo_down_loss" else [0.1, -0.4], requires_grad=True)
    getattr(anchored, name)(chosen, rejected, beta=1.0).sum().backward()
    assert (chosen.grad * chosen_sign > 0).all()
    assert (rejected.grad * rejected_sign > 0).all()


@pytest.mark.parametrize("name", SLOW)
def test_the_anchor_counts_not_only_the_difference(name):
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
    loss = getattr(anchored, name)
    assert not torch.allclose(loss(chosen + 4, rejected + 4), loss(chosen, rejected))


@pytest.mark.parametrize("name", SLOW)
def test_far_out_pairs_stay_finite(name):
    chosen = torch.tensor([3000.0, -3000.0], requires_grad=True)
    losses = getattr(anchored, name)(chosen, -chosen.detach())
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()


@pytest.mark.parametrize("name", SLOW)
def test_refuses_what_would_broadcast(name):
    with pytest.raises(ValueError, match=r"one number per pair \(B,\), got chosen_logratios \(2,\), .*\(2, 1\)"):
        getattr(anchored, name)(torch.zeros(2), torch.zeros(2, 1))


def test_sppo_by_hand():
    # 1 / (2 * 0.25) = 2;  (3 - 2)^2 + (-1 + 2)^2 = 2
    assert anchored.sppo_hard_loss(torch.tensor([3.0]), torch.tensor([-1.0]), beta=0.25).tolist() == [2.0]


def test_apo_zero_by_hand():
    # sigmoid(-ln 3) = 1/4 and sigmoid(ln 3) = 3/4
    log3 = torch.tensor([math.log(3)])
    torch.testing.assert_close(anchored.apo_zero_loss(log3, log3, beta=1.0), torch.tensor([1.0]))
    torch.testing.assert_close(anchored.apo_zero_loss(log3, -log3, beta=1.0), torch.tensor([0.5]))
