"""Value losses: numbers by hand, slow loops, gradients, clips; explained variance and its edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses.values import clipped_value_loss, explained_variance

NUMBERS = st.floats(-5, 5)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_equals_a_slow_loop(tokens):
    values, old_values, returns = torch.tensor(tokens, dtype=torch.float64).unbind(1)
    got, slow = clipped_value_loss(values, old_values, returns, clip_range_value=0.5), []
    for value, old, target in tokens:
        near = min(max(value, old - 0.5), old + 0.5)
        slow.append(0.5 * max((value - target) ** 2, (near - target) ** 2))
    torch.testing.assert_close(got.losses, torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_by_hand():
    """Old value 0, clip 0.2, return 1. At 1: (0.2 - 1)^2 / 2 = 0.32. At -1, the wrong way: 2^2 / 2. At 0.1: 0.405."""
    values = torch.tensor([1.0, -1.0, 0.1], requires_grad=True)
    got = clipped_value_loss(values, torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(got.losses, torch.tensor([0.32, 2.0, 0.405]))
    assert got.is_clipped.tolist() == [True, False, False]
    got.losses.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.0, -2.0, -0.9]))


def test_without_a_clip_it_is_half_the_squared_error():
    got = clipped_value_loss(torch.tensor([1.0, 9.0]), torch.zeros(2), torch.ones(2), clip_range_value=None)
    assert got.losses.tolist() == [0.0, 32.0]
    assert got.is_clipped.tolist() == [False, False]


def test_old_values_and_returns_are_constants():
    values, old_values, returns = (torch.tensor([number], requires_grad=True) for number in (0.5, 0.0, 1.0))
    clipped_value_loss(values, old_values, returns).losses.sum().backward()
    assert old_values.grad is None
    assert returns.grad is None


@pytest.mark.parametrize("clip", [0.0, -0.2])
def test_settings_out_of_range(clip):
    with pytest.raises(ValueError, match=rf"clip_range_value must be above 0, got {clip}"):
        clipped_value_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip_range_value=clip)


def test_shapes_are_refused():
    for call in (
        lambda: clipped_value_loss(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2)),
        lambda: explained_variance(torch.zeros(2, 1), torch.zeros(2)),
    ):
        with pytest.raises(ValueError, match=r"per token \(N,\), got values \(2, 1\)"):
            call()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 1.0),  # foreseen
        ([7.0, 8.0, 9.0, 10.0], 1.0),  # foreseen but for a constant
        ([2.5, 2.5, 2.5, 2.5], 0.0),  # a constant
        ([4.0, 3.0, 2.0, 1.0], -3.0),  # the wrong way: returns - values = -3, -1, 1, 3, of variance 5, over 1.25
        ([1.0, 2.0, 3.0, 6.0], 0.4),  # returns - values = 0, 0, 0, -2, of variance 0.75, over 1.25
    ],
)
def test_explained_variance_by_hand(values, expected):
    got = explained_variance(torch.tensor(values), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert float(got) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("returns", [[3.0], [0.1] * 7, [0.0, 0.0], [1.0, 1.0 + 1e-7, 1.0 - 1e-7]])
def test_nothing_to_explain(returns):
    """Scores that are all equal make returns that differ by rounding alone; over that variance lies -1e14."""
    returns = torch.tensor(returns)
    assert explained_variance(torch.randn(len(returns)), returns).tolist() == 0.0


def test_a_broken_critic_is_seen():
    assert explained_variance(torch.tensor([0.0, torch.nan]), torch.tensor([0.0, 1.0])).isnan()
    assert explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, torch.nan])).isnan()


def test_explained_variance_has_no_gradient():
    assert not explained_variance(torch.randn(3, requires_grad=True), torch.randn(3)).requires_grad
