"""f-divergence scores: each is the derivative of its generator, written out here and differentiated."""

import math

import pytest
import torch

from lit_rlhf.losses.divergences import alpha_scores, forward_kl_scores, js_scores, reverse_kl_scores

LOGRATIOS = torch.tensor([-2.0, -0.3, 0.0, 0.7, 3.0], dtype=torch.float64)

# The paper's generators f(u); a score may differ from f'(u) by a constant, which cancels between chosen and rejected.
GENERATORS = {
    "reverse_kl": (reverse_kl_scores, lambda u: u * u.log()),
    "forward_kl": (forward_kl_scores, lambda u: -u.log()),
    "js": (js_scores, lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log()),
    "alpha_0.5": (lambda x: alpha_scores(x, alpha=0.5), lambda u: 4 * ((1 - u) / 2 + u / 2 - u.sqrt())),
    "alpha_0.3": (
        lambda x: alpha_scores(x, alpha=0.3),
        lambda u: (u**0.3 - 0.7 - 0.3 * u) / (0.3 * (0.3 - 1)),
    ),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_score_is_the_derivative_of_the_generator(name):
    scores, generator = GENERATORS[name]
    u = LOGRATIOS.exp().requires_grad_()
    (derivative,) = torch.autograd.grad(generator(u).sum(), u)
    difference = scores(LOGRATIOS) - derivative
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GENERATORS)
def test_scores_are_zero_and_of_slope_one_or_half_where_policy_and_reference_agree(name):
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    score = GENERATORS[name][0](x)
    (slope,) = torch.autograd.grad(score.sum(), x)
    assert abs(score.item()) < 1e-12
    assert slope.item() == pytest.approx(0.5 if name == "js" else 1.0)


@pytest.mark.parametrize("name", GENERATORS)
def test_scores_rise_with_the_logratio(name):
    assert (GENERATORS[name][0](LOGRATIOS).diff() > 0).all()


@pytest.mark.parametrize("name", GENERATORS)
def test_far_out_logratios_stay_finite(name):
    x = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    scores = GENERATORS[name][0](x)
    scores.sum().backward()
    assert scores.isfinite().all()
    assert x.grad.isfinite().all()


def test_alpha_joins_both_kls():
    x = LOGRATIOS
    torch.testing.assert_close(alpha_scores(x, alpha=1.0), reverse_kl_scores(x))
    torch.testing.assert_close(alpha_scores(x, alpha=1.0 - 1e-7), reverse_kl_scores(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alpha_scores(x, alpha=0.0), forward_kl_scores(x))


def test_js_by_hand():
    # u = 3: log(2 * 3 / 4)
    assert js_scores(torch.tensor([math.log(3)])).item() == pytest.approx(math.log(1.5), abs=1e-6)
