"""Transport losses: a slow loop over quantiles, invariance to who is paired with whom, refusals."""

import math

import pytest
import torch

from lit_rlhf.losses.marks import is_whole_batch
from lit_rlhf.losses.transport import aot_loss, aot_unpaired_loss

BETA, SMOOTHING = 0.3, 0.2
CHOSEN, REJECTED = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 3.0, -1.0])
REF_CHOSEN, REF_REJECTED = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.2, 0.1, 0.4])


def slow(difference):
    """One smoothed logistic loss, in Python floats."""
    right, wrong = math.log1p(math.exp(-BETA * difference)), math.log1p(math.exp(BETA * difference))
    return (1 - SMOOTHING) * right + SMOOTHING * wrong


def test_aot_equals_a_slow_loop():
    losses = aot_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, beta=BETA, label_smoothing=SMOOTHING)
    # margins 1, -5, 1.5 and -1.2, 0.4, 1.6, sorted and subtracted
    expected = [slow(-5 - -1.2), slow(1 - 0.4), slow(1.5 - 1.6)]
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_aot_unpaired_equals_a_slow_loop():
    losses = aot_unpaired_loss(CHOSEN, REJECTED, beta=BETA, label_smoothing=SMOOTHING)
    expected = [slow(-2 - -1), slow(0.5 - 0), slow(1 - 3)]
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_unpaired_does_not_mind_who_is_paired_with_whom():
    shuffled = aot_unpaired_loss(CHOSEN, REJECTED[[2, 0, 1]])
    torch.testing.assert_close(shuffled, aot_unpaired_loss(CHOSEN, REJECTED))


def test_gradient_goes_back_to_the_response_it_came_from():
    chosen = CHOSEN.clone().requires_grad_()
    (aot_unpaired_loss(chosen, REJECTED, beta=1.0) * torch.tensor([0.0, 0.0, 1.0])).sum().backward()
    assert chosen.grad.nonzero().flatten().tolist() == [0]
    assert chosen.grad[0] < 0


def test_the_split_matters_so_they_ask_for_the_whole_batch():
    whole = aot_unpaired_loss(CHOSEN, REJECTED)
    halves = torch.cat([aot_unpaired_loss(CHOSEN[:1], REJECTED[:1]), aot_unpaired_loss(CHOSEN[1:], REJECTED[1:])])
    assert not torch.isclose(whole.sum(), halves.sum())
    assert is_whole_batch(aot_loss)
    assert is_whole_batch(aot_unpaired_loss)


def test_refusals():
    with pytest.raises(ValueError, match=r"ref_rejected_logprobs \(3, 1\)"):
        aot_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED[:, None])
    with pytest.raises(ValueError, match=r"rejected_logratios \(2,\)"):
        aot_unpaired_loss(CHOSEN, REJECTED[:2])
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 0.5\), got 0.7"):
        aot_unpaired_loss(CHOSEN, REJECTED, label_smoothing=0.7)
