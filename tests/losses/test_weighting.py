"""Weights: against loops over responses, their gradient, their edges, refusals."""

import math

import pytest
import torch

from lit_rlhf.losses.weighting import ld_token_weights, wpo_weights

LENGTHS = torch.tensor([2, 4, 3, 0, 1])
SHARED = torch.tensor([2, 2, 0, 0, 1])
SEQUENCES = torch.arange(5).repeat_interleave(LENGTHS)


def test_ld_weights_equal_a_loop():
    expected = [
        1.0 if position < shared else 0.3
        for length, shared in zip(LENGTHS.tolist(), SHARED.tolist(), strict=True)
        for position in range(length)
    ]
    weights = ld_token_weights(SEQUENCES, LENGTHS, SHARED, ld_alpha=0.3)
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_ld_alpha_one_weighs_nothing():
    assert (ld_token_weights(SEQUENCES, LENGTHS, SHARED, ld_alpha=1.0) == 1).all()


@pytest.mark.parametrize("bad", [-0.1, 1.1])
def test_ld_alpha_out_of_range(bad):
    with pytest.raises(ValueError, match=rf"ld_alpha must lie in \[0, 1\], got {bad}"):
        ld_token_weights(SEQUENCES, LENGTHS, SHARED, ld_alpha=bad)


def test_ld_refuses_lengths_of_other_sequences():
    with pytest.raises(ValueError, match=r"lengths \(5,\) and shared_lengths \(4,\) differ"):
        ld_token_weights(SEQUENCES, LENGTHS, SHARED[:4], ld_alpha=0.5)


def test_wpo_weights_equal_a_loop():
    logprobs, squared = -torch.rand(10), -torch.rand(10)
    weights = wpo_weights(logprobs, squared, SEQUENCES, LENGTHS)
    for number, length in enumerate(LENGTHS.tolist()):
        mine = [i for i in range(10) if SEQUENCES[i] == number]
        mean = sum((logprobs[i] - squared[i]).item() for i in mine) / max(length, 1)
        assert weights[number].item() == pytest.approx(math.exp(mean), rel=1e-5)


def test_wpo_weighs_a_uniform_policy_by_one():
    logprobs = torch.full((10,), 1 / 8).log()  # 8 equal tokens: the sum of squared probabilities is 1/8 as well
    torch.testing.assert_close(wpo_weights(logprobs, logprobs, SEQUENCES, LENGTHS), torch.ones(5))


def test_wpo_weights_carry_no_gradient():
    logprobs = torch.zeros(10, requires_grad=True)
    assert not wpo_weights(logprobs, torch.zeros(10), SEQUENCES, LENGTHS).requires_grad


def test_wpo_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"differ in shape: \[\(10,\), \(9,\), \(10,\)\]"):
        wpo_weights(torch.zeros(10), torch.zeros(9), SEQUENCES, LENGTHS)
