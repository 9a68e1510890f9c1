"""Policy losses: numbers by hand, slow loops, which way they push, what is clipped, splits, refusals."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses.policy_gradient import (
    clipped_policy_loss,
    importance_weights,
    reinforce_loss,
    sequence_policy_loss,
)

LOW, HIGH, DUAL = 0.2, 0.28, 3.0


def loss_at(ratios, advantages, **settings):
    ratios = torch.tensor(ratios)
    return clipped_policy_loss(ratios.log(), torch.zeros_like(ratios), torch.tensor(advantages), **settings)


def as_printed(ratio, advantage, low, high, dual):
    """Schulman et al. (2017), eq. 7, and Ye et al. (2019) where the advantage is negative; to be maximised."""
    surrogate = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return max(surrogate, dual * advantage) if dual and advantage < 0 else surrogate


@pytest.mark.parametrize("dual", [None, 0, 3.0])
@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(-3, 3)), min_size=1, max_size=6))
def test_equals_the_formula_as_printed(dual, tokens):
    log_ratios, advantages = torch.tensor(tokens, dtype=torch.float64).unbind(1)
    ours = clipped_policy_loss(
        log_ratios, torch.zeros_like(log_ratios), advantages, clip_range=LOW, clip_range_high=HIGH, dual_clip=dual
    )
    slow = [-as_printed(math.exp(log_ratio), advantage, LOW, HIGH, dual) for log_ratio, advantage in tokens]
    torch.testing.assert_close(ours.losses, torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_by_hand():
    got = loss_at([1.0, 1.5, 0.5, 1.5, 0.5, 4.0], [2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    # inside; 1.2 * 2; 0.5 * 2; 1.5 * -2; 0.8 * -2; 3 * -2, each with its sign turned
    torch.testing.assert_close(got.losses, torch.tensor([-2.0, -2.4, -1.0, 3.0, 1.6, 6.0]))
    assert got.is_clipped_high.tolist() == [False, True, False, False, False, False]
    assert got.is_clipped_low.tolist() == [False, False, False, False, True, False]
    assert got.is_dual_clipped.tolist() == [False, False, False, False, False, True]
    torch.testing.assert_close(got.ratios, torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5, 4.0]))


def test_only_unclipped_tokens_have_a_gradient():
    log_ratios = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5, 4.0]).log().requires_grad_()
    got = clipped_policy_loss(log_ratios, torch.zeros(6), torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0]))
    got.losses.sum().backward()
    torch.testing.assert_close(log_ratios.grad, torch.tensor([-2.0, 0.0, -1.0, 3.0, 0.0, 0.0]))  # -ratio * advantage
    is_clipped = got.is_clipped_low | got.is_clipped_high | got.is_dual_clipped
    assert is_clipped.tolist() == (log_ratios.grad == 0).tolist()


def test_the_first_ratio_is_one_and_its_gradient_that_of_reinforce():
    logprobs = (-3 * torch.rand(5)).requires_grad_()
    advantages = torch.randn(5)
    got = clipped_policy_loss(logprobs, logprobs.detach(), advantages)
    assert got.ratios.tolist() == [1.0] * 5
    expected = torch.autograd.grad(reinforce_loss(logprobs, advantages).sum(), logprobs)[0]
    torch.testing.assert_close(torch.autograd.grad(got.losses.sum(), logprobs)[0], expected)
    torch.testing.assert_close(expected, -advantages)


def test_old_logprobs_and_advantages_are_constants():
    """Whoever passes the same tensor twice still learns: against itself undetached, a ratio has no gradient at all."""
    logprobs, advantages = torch.tensor([-1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    clipped_policy_loss(logprobs, logprobs, advantages).losses.sum().backward()
    assert logprobs.grad.tolist() == [-1.0]
    reinforce_loss(logprobs, advantages).sum().backward()
    assert advantages.grad is None


def test_statistics_carry_no_gradient():
    got = clipped_policy_loss(torch.zeros(1, requires_grad=True), torch.zeros(1), torch.ones(1))
    assert got.losses.requires_grad
    assert not any(each.requires_grad for each in got[1:])


def test_clip_higher_lets_likelier_tokens_go_further():
    assert loss_at([1.25], [1.0]).is_clipped_high.tolist() == [True]
    assert loss_at([1.25], [1.0], clip_range_high=0.28).is_clipped_high.tolist() == [False]
    assert loss_at([0.75], [-1.0], clip_range_high=0.28).is_clipped_low.tolist() == [True]


def test_without_clips_it_is_the_plain_surrogate():
    got = loss_at([0.1, 9.0], [-2.0, 2.0], clip_range=None, dual_clip=None)
    torch.testing.assert_close(got.losses, torch.tensor([0.2, -18.0]))
    assert not (got.is_clipped_low | got.is_clipped_high | got.is_dual_clipped).any()


def test_no_advantage_no_loss_and_nothing_clipped():
    got = loss_at([9.0, 0.1], [0.0, 0.0])
    assert got.losses.abs().tolist() == [0.0, 0.0]
    assert not (got.is_clipped_low | got.is_clipped_high | got.is_dual_clipped).any()


@pytest.mark.parametrize("log_ratio", [1e3, -1e3])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_one_bad_token_does_not_end_a_run(log_ratio, advantage):
    logprobs = torch.tensor([log_ratio], requires_grad=True)
    got = clipped_policy_loss(logprobs, torch.zeros(1), torch.tensor([advantage]), clip_range=None, dual_clip=None)
    got.losses.sum().backward()
    assert got.losses.isfinite().all()
    assert logprobs.grad.isfinite().all()
    assert float(got.ratios) == pytest.approx(math.exp(math.copysign(20, log_ratio)), rel=1e-5)


def test_no_tokens():
    assert clipped_policy_loss(torch.zeros(0), torch.zeros(0), torch.zeros(0)).losses.shape == (0,)


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=0, max_size=3))
def test_the_sum_does_not_depend_on_the_split_into_micro_batches(cuts):
    torch.manual_seed(0)
    old, advantages = -torch.rand(7).double(), torch.randn(7).double()
    whole, parts = (-torch.rand(7).double()).requires_grad_(), []
    edges = [0, *sorted(cuts), 7]
    for start, stop in pairwise(edges):
        each = slice(start, stop)
        parts.append(clipped_policy_loss(whole[each], old[each], advantages[each]).losses.sum())
    expected = clipped_policy_loss(whole, old, advantages).losses.sum()
    torch.testing.assert_close(sum(parts), expected)
    got, want = (torch.autograd.grad(each, whole)[0] for each in (sum(parts), expected))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_range": 0.0}, r"clip_range must lie in \(0, 1\), got 0.0"),
        ({"clip_range": 1.0}, r"clip_range must lie in \(0, 1\), got 1.0"),
        ({"clip_range_high": 0.0}, "clip_range_high must be above 0, got 0.0"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1, got 1.0"),
        ({"dual_clip": -2.0}, "dual_clip must be above 1, got -2.0"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        loss_at([1.0], [1.0], **change)


def test_shapes_are_refused():
    for call in (
        lambda: clipped_policy_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2, 1)),
        lambda: reinforce_loss(torch.zeros(2), torch.zeros(2, 1)),
        lambda: importance_weights(torch.zeros(2), torch.zeros(2, 1)),
    ):
        with pytest.raises(ValueError, match=r"per token \(N,\), got logprobs \(2,\).* \(2, 1\)"):
            call()


LENGTHS = torch.tensor([3, 1, 0, 2])
SEQUENCES = torch.arange(4).repeat_interleave(LENGTHS)


def test_a_sequence_ratio_is_the_geometric_mean_of_its_tokens():
    log_ratios, advantages = torch.randn(6) / 2, torch.tensor([1.0, -1.0, 1.0, -1.0])
    got = sequence_policy_loss(log_ratios, torch.zeros(6), advantages, SEQUENCES, LENGTHS, clip_range=0.1)
    for number, length in enumerate(LENGTHS.tolist()):
        mine = [math.exp(log_ratios[i]) for i in range(6) if SEQUENCES[i] == number]
        ratio = math.prod(mine) ** (1 / max(length, 1))
        assert float(got.ratios[number]) == pytest.approx(ratio, rel=1e-5)
        expected = -as_printed(ratio, float(advantages[number]), 0.1, 4e-4, None)
        assert float(got.losses[number]) == pytest.approx(expected, rel=1e-5)


def test_the_first_sequence_gradient_spreads_the_advantage_over_its_tokens():
    logprobs, advantages = torch.zeros(6, requires_grad=True), torch.tensor([3.0, -1.0, 1.0, 4.0])
    sequence_policy_loss(logprobs, logprobs, advantages, SEQUENCES, LENGTHS).losses.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.0, -1.0, -1.0, 1.0, -2.0, -2.0]))


def test_a_sequence_may_be_clipped_twice():
    once, twice = (
        sequence_policy_loss(torch.full((6,), 2.0), torch.zeros(6), -torch.ones(4), SEQUENCES, LENGTHS, dual_clip=dual)
        for dual in (None, 3.0)
    )
    assert twice.is_dual_clipped.tolist() == [True, True, False, True]
    assert twice.losses.tolist() == [3.0, 3.0, 1.0, 3.0]
    assert float(once.losses[0]) == pytest.approx(math.exp(2.0))


def test_sequence_shapes_are_refused():
    with pytest.raises(ValueError, match=r"per sequence \(L,\), got advantages \(6,\), lengths \(4,\)"):
        sequence_policy_loss(torch.zeros(6), torch.zeros(6), torch.zeros(6), SEQUENCES, LENGTHS)


def test_importance_weights_by_hand():
    trainer, sampler = torch.tensor([0.5, 0.9, 0.1, 0.6]).log(), torch.tensor([0.5, 0.1, 0.9, 0.4]).log()
    torch.testing.assert_close(importance_weights(trainer, sampler), torch.tensor([1.0, 2.0, 1 / 9, 1.5]))
    bounded = importance_weights(trainer, sampler, cap=2.0, floor=0.5)
    torch.testing.assert_close(bounded, torch.tensor([1.0, 2.0, 0.5, 1.5]))
    masked = importance_weights(trainer, sampler, cap=2.0, floor=0.5, kind="mask")
    torch.testing.assert_close(masked, torch.tensor([1.0, 0.0, 0.0, 1.5]))


def test_importance_weights_are_constants_and_finite():
    trainer = torch.tensor([0.0, -1e3, 1e3], requires_grad=True)
    for kind in ("truncate", "mask"):
        weights = importance_weights(trainer, torch.tensor([-math.inf, 0.0, 0.0]), kind=kind)
        assert weights.isfinite().all()
        assert not weights.requires_grad


def test_truncated_weights_never_exceed_the_cap():
    """What an uncapped ratio of another engine does to a run: one token of weight 400 rules the step."""
    trainer, sampler = torch.tensor([-0.001, -0.7]), torch.tensor([-6.0, -0.7])
    assert importance_weights(trainer, sampler).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("change", [{"cap": 0.9}, {"floor": 1.1}, {"floor": -0.1}, {"kind": "clip"}])
def test_importance_settings_out_of_range(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"{name}.* got .*{change[name]}"):
        importance_weights(torch.zeros(1), torch.zeros(1), **change)
