"""KL: numbers by hand, expectations over a whole vocabulary, gradients, clamps, the controller."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses import kl

ESTIMATORS = {"k1": kl.kl_k1, "k2": kl.kl_k2, "k3": kl.kl_k3}
BY_HAND = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}
NATS = st.floats(-30, 0)


def two_policies():
    """Logits (V,) of a policy, and log-probabilities (V,) of a reference."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    return logits, torch.randn(6, dtype=torch.float64).log_softmax(0)


def gradient_of(quantity, logits):
    return torch.autograd.grad(quantity, logits, retain_graph=True)[0]


def expected_gradient(loss, logits, ref_logprobs):
    """Expectation, over the tokens that the policy draws, of the gradient of a token's loss."""
    logprobs = logits.log_softmax(0)
    return gradient_of((logprobs.detach().exp() * loss(logprobs, ref_logprobs)).sum(), logits)


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(deadline=None)
@given(st.lists(st.tuples(NATS, NATS), min_size=1, max_size=5))
def test_estimators_equal_a_slow_loop(name, pairs):
    logprobs, ref_logprobs = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    slow = []
    for new, ref in pairs:
        estimate = BY_HAND[name](min(max(new - ref, -6.0), 6.0))
        slow.append(min(max(estimate, -4.0), 4.0))
    ours = ESTIMATORS[name](logprobs, ref_logprobs, max_log_ratio=6.0, max_kl=4.0)
    torch.testing.assert_close(ours, torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_estimators_by_hand():
    """d = log 2: k1 = log 2 = 0.693147, k2 = log(2)^2 / 2 = 0.240227, k3 = 1/2 - 1 + log 2 = 0.193147."""
    logprobs, ref_logprobs = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    got = [float(estimator(logprobs, ref_logprobs)) for estimator in ESTIMATORS.values()]
    assert got == pytest.approx([0.693147, 0.240227, 0.193147], abs=1e-6)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(name):
    logits, ref_logprobs = two_policies()
    logprobs = logits.detach().log_softmax(0)
    exact = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    torch.testing.assert_close((logprobs.exp() * ESTIMATORS[name](logprobs, ref_logprobs)).sum(), exact)


@pytest.mark.parametrize("loss", [kl.kl_k2_loss, kl.kl_k3_loss])
def test_a_loss_goes_down_the_divergence_of_the_policy_from_the_reference(loss):
    logits, ref_logprobs = two_policies()
    logprobs = logits.log_softmax(0)
    exact = gradient_of((logprobs.exp() * (logprobs - ref_logprobs)).sum(), logits)
    torch.testing.assert_close(expected_gradient(loss, logits, ref_logprobs), exact)


def test_why_plain_k3_and_k1_are_no_losses():
    """k3 goes down the divergence of the reference from the policy instead, and k1 goes nowhere."""
    logits, ref_logprobs = two_policies()
    other = gradient_of((ref_logprobs.exp() * (ref_logprobs - logits.log_softmax(0))).sum(), logits)
    torch.testing.assert_close(expected_gradient(kl.kl_k3, logits, ref_logprobs), other)
    assert expected_gradient(kl.kl_k1, logits, ref_logprobs).abs().max() < 1e-12


def test_k3_loss_has_the_value_of_k3_and_the_gradient_of_k2():
    logprobs, ref_logprobs = torch.tensor([-1.0, -4.0], requires_grad=True), torch.tensor([-3.0, -1.0])
    losses = kl.kl_k3_loss(logprobs, ref_logprobs)
    assert losses.tolist() == kl.kl_k3(logprobs, ref_logprobs).tolist()
    losses.sum().backward()
    assert logprobs.grad.tolist() == [2.0, -3.0]


@pytest.mark.parametrize("loss", [kl.kl_k2_loss, kl.kl_k3_loss])
def test_a_token_past_the_limit_is_still_pulled_back(loss):
    logprobs = torch.tensor([-1.0, -90.0], requires_grad=True)
    losses = loss(logprobs, torch.tensor([-90.0, -1.0]), max_log_ratio=5.0)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logprobs.grad.tolist() == [5.0, -5.0]


@pytest.mark.parametrize("loss", [kl.kl_k2_loss, kl.kl_k3_loss])
def test_the_reference_learns_nothing(loss):
    logprobs, ref_logprobs = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    loss(logprobs, ref_logprobs).sum().backward()
    assert ref_logprobs.grad is None


def test_k2_loss_past_the_limit_by_hand():
    """Huber's: 2 (5 - 2 / 2) = 8 at a log-ratio of 5 and a limit of 2."""
    assert kl.kl_k2_loss(torch.tensor([0.0]), torch.tensor([-5.0]), max_log_ratio=2.0).tolist() == [8.0]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("ratio", [1e4, -1e4, math.inf, -math.inf])
def test_one_bad_token_does_not_end_a_run(name, ratio):
    estimate = ESTIMATORS[name](torch.tensor([ratio]), torch.tensor([0.0]))
    assert float(estimate) == (-10.0 if name == "k1" and ratio < 0 else 10.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_divergence_from_oneself_and_none_below_zero(name):
    same = torch.tensor([-3.0, -0.1])
    assert ESTIMATORS[name](same, same).tolist() == [0.0, 0.0]
    if name != "k1":
        assert (ESTIMATORS[name](torch.randn(50), torch.randn(50)) >= 0).all()


@pytest.mark.parametrize("function", [*ESTIMATORS.values(), kl.kl_k2_loss, kl.kl_k3_loss])
def test_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"per token \(N,\), got logprobs \(2,\), ref_logprobs \(2, 1\)"):
        function(torch.zeros(2), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("observed", "expected"),
    [(6.0, 0.1), (6.6, 0.1005), (5.4, 0.0995), (60.0, 0.101), (0.0, 0.099), (-3.0, 0.099)],
)
def test_the_controller_by_hand(observed, expected):
    """0.1 (1 + error 500 / 10000): an error of 0.1 is half a percent, and 0.2 the largest."""
    assert kl.adapted_kl_coef(0.1, observed, target=6.0, num_responses=500) == pytest.approx(expected)


@pytest.mark.parametrize("coef", [0.01, 1.0])
def test_the_controller_holds_what_answers_to_it(coef):
    """A policy whose divergence falls with the coefficient ends at the target, from either side."""
    for _ in range(2000):
        coef = kl.adapted_kl_coef(coef, 0.6 / coef, target=6.0, num_responses=256, horizon=10_000)
    assert coef == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.0}, "target must be above 0"),
        ({"observed_kl": math.nan}, "observed_kl is nan"),
        ({"observed_kl": math.inf}, "observed_kl is inf"),
        ({"num_responses": 50_000}, r"horizon 10000 is too short for 50000 responses .* must exceed 10000"),
    ],
)
def test_the_controller_refuses(change, message):
    given_ = {"coef": 0.1, "observed_kl": 6.0, "target": 6.0, "num_responses": 64, "horizon": 10_000} | change
    with pytest.raises(ValueError, match=message):
        kl.adapted_kl_coef(**given_)
