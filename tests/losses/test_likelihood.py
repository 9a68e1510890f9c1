"""Likelihood of texts: label smoothing against torch's cross-entropy, and the weights of both averages by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from lit_rlhf.losses.likelihood import sequence_shares, smoothed_nll, token_shares


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7])
def test_it_is_the_cross_entropy_with_smoothed_labels(label_smoothing):
    torch.manual_seed(0)
    logits, targets = (3 * torch.randn(9, 13)).requires_grad_(), torch.randint(13, (9,))
    own = logits.gather(1, targets[:, None])[:, 0]
    logprobs = log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    ours = smoothed_nll(logprobs, own - logits.mean(-1), label_smoothing=label_smoothing)
    wanted = cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    torch.testing.assert_close(ours, wanted)
    gradients = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (ours, wanted)]
    torch.testing.assert_close(*gradients)


def test_without_smoothing_no_leads_are_needed():
    assert smoothed_nll(torch.tensor([-0.5, -2.0]), torch.empty(0)).tolist() == [0.5, 2.0]


@pytest.mark.parametrize(("logprobs", "leads"), [((3,), (0,)), ((3,), (2,)), ((3, 1), (3, 1))])
def test_shapes_that_do_not_belong_together(logprobs, leads):
    with pytest.raises(ValueError, match="are not both"):
        smoothed_nll(torch.zeros(logprobs), torch.zeros(leads), label_smoothing=0.1)


def test_the_weights_of_both_averages_by_hand():
    sequences, losses = torch.tensor([0, 0, 0, 2, 2, 5]), torch.tensor([1.0, 2.0, 6.0, 4.0, 8.0, 5.0])
    by_token, by_sequence = token_shares(sequences), sequence_shares(sequences)
    assert (float(by_token.sum()), float(by_sequence.sum())) == pytest.approx((6, 3))
    assert float((by_token * losses).sum() / by_token.sum()) == pytest.approx(26 / 6)
    assert float((by_sequence * losses).sum() / by_sequence.sum()) == pytest.approx((3 + 6 + 5) / 3)


def test_no_tokens_weigh_nothing():
    none = torch.empty(0, dtype=torch.int64)
    assert len(token_shares(none)) == len(sequence_shares(none)) == 0
