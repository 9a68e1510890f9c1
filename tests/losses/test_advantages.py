"""Advantages: numbers by hand, slow loops, cells that do not count, groups of all kinds, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.losses.advantages import (
    discounted_returns,
    gae,
    group_advantages,
    leave_one_out_advantages,
    length_adaptive_lambda,
    token_rewards,
    whiten,
)

GARBAGE = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0])


@st.composite
def padded(draw, max_rows=4, max_width=6):
    """A mask (L, R) of any kind, empty rows and holes too, and two tables of numbers (L, R)."""
    rows, width = draw(st.integers(1, max_rows)), draw(st.integers(1, max_width))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width)))
    torch.manual_seed(draw(st.integers(0, 99)))
    return mask.view(rows, width), *torch.randn(2, rows, width, dtype=torch.float64)


def slow_gae(rewards, values, gamma, lam):
    """Schulman et al. (2015), eq. 16, term by term, of one response without padding."""
    values = [*values, 0.0]
    errors = [reward + gamma * values[t + 1] - values[t] for t, reward in enumerate(rewards)]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))]


def rows_of(mask, *tables):
    """Of each response, the numbers of its own tokens alone."""
    return [[table[row][mask[row]].tolist() for table in tables] for row in range(len(mask))]


@settings(deadline=None)
@given(padded(), st.sampled_from([(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0), (0.0, 1.0)]))
def test_gae_of_a_mask_with_holes_is_that_of_the_tokens_side_by_side(table, settings_):
    """miles#1827: tokens that are not trained neither decay credit nor swallow the reward."""
    mask, rewards, values = table
    gamma, lam = settings_
    got = gae(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for row, (mine, guesses, advantages, returns) in enumerate(rows_of(mask, rewards, values, *got)):
        slow = slow_gae(mine, guesses, gamma, lam)
        assert advantages == pytest.approx(slow, abs=1e-9)
        assert returns == pytest.approx([a + v for a, v in zip(slow, guesses, strict=True)], abs=1e-9)
        assert not got.advantages[row][~mask[row]].any()
        assert not got.returns[row][~mask[row]].any()


def test_gae_by_hand():
    """delta = (0 + 2 - 1, 0 + 3 - 2, 4 - 3) = (1, 1, 1); with lambda 0.5, A = (1.75, 1.5, 1)."""
    got = gae(
        torch.tensor([[0.0, 0.0, 4.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 3.0, 9.0]]),
        torch.tensor([[True, True, True, False]]),
        gae_lambda=0.5,
    )
    assert got.advantages.tolist() == [[1.75, 1.5, 1.0, 0.0]]
    assert got.returns.tolist() == [[2.75, 3.5, 4.0, 0.0]]


@settings(deadline=None)
@given(padded(), GARBAGE)
def test_garbage_in_pads_changes_no_number(table, garbage):
    """verl#50: values that are not masked before the recursion leak into it. AReaL#1346: pads that a mean counts."""
    mask, rewards, values = table
    dirty = [torch.where(mask, each, garbage) for each in (rewards, values)]
    for clean_one, dirty_one in (
        (gae(rewards, values, mask), gae(*dirty, mask)),
        ([discounted_returns(rewards, mask)], [discounted_returns(dirty[0], mask)]),
        ([whiten(rewards, mask)], [whiten(dirty[0], mask)]),
        ([whiten(rewards, mask, shift_mean=False)], [whiten(dirty[0], mask, shift_mean=False)]),
        (
            [token_rewards(rewards[:, 0], values, mask, kl_coef=0.1)],
            [token_rewards(rewards[:, 0], dirty[1], mask, kl_coef=0.1)],
        ),
    ):
        for clean, other in zip(clean_one, dirty_one, strict=True):
            assert torch.equal(clean, other)
            assert clean.isfinite().all()
            assert not clean[~mask].any()


def test_more_padding_changes_no_number():
    mask, rewards, values = torch.ones(2, 3).bool(), torch.randn(2, 3), torch.randn(2, 3)
    wider = [torch.nn.functional.pad(each, (2, 4)) for each in (rewards, values, mask)]
    for got, expected in zip(gae(*wider), gae(rewards, values, mask), strict=True):
        torch.testing.assert_close(got[:, 2:5], expected)


def test_a_long_row_keeps_its_order():
    """A sort that is not stable shuffles equal keys only from some length on."""
    torch.manual_seed(0)
    mask, rewards = torch.rand(1, 3000) < 0.5, torch.randn(1, 3000)
    expected = rewards[mask].flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(discounted_returns(rewards, mask)[mask], expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_expected_behind_the_last_token():
    """A critic that still hopes after the end of one response must not lift another that is longer."""
    rewards, values = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 50.0]])
    assert gae(rewards, values, torch.tensor([[True, True, False]]), gae_lambda=1.0).returns[0, 1] == 1.0


def test_a_critic_that_knows_is_never_surprised():
    rewards, mask = torch.randn(2, 5), torch.ones(2, 5).bool()
    got = gae(rewards, discounted_returns(rewards, mask, gamma=0.9), mask, gamma=0.9)
    torch.testing.assert_close(got.advantages, torch.zeros(2, 5))


def test_the_value_of_a_token_belongs_to_that_token():
    """verl#1758: a critic shifted by one. Its guess at a token lowers that token's advantage, not its neighbours'."""
    mask, zeros = torch.ones(1, 3).bool(), torch.zeros(1, 3)
    guess = torch.tensor([[0.0, 1.0, 0.0]])
    assert gae(zeros, guess, mask, gae_lambda=0.0).advantages.tolist() == [[1.0, -1.0, 0.0]]


def test_lambda_one_is_the_return_less_the_value():
    mask, rewards, values = torch.ones(2, 4).bool(), torch.randn(2, 4), torch.randn(2, 4)
    got = gae(rewards, values, mask, gae_lambda=1.0)
    torch.testing.assert_close(got.returns, rewards.flip(1).cumsum(1).flip(1))
    torch.testing.assert_close(got.advantages, got.returns - values)


def test_decoupled_estimates():
    mask, rewards, values = torch.ones(2, 4).bool(), torch.randn(2, 4), torch.randn(2, 4)
    got = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.5, value_lambda=1.0)
    torch.testing.assert_close(got.advantages, gae(rewards, values, mask, gamma=0.9, gae_lambda=0.5).advantages)
    torch.testing.assert_close(got.returns, discounted_returns(rewards, mask, gamma=0.9))


def test_a_lambda_for_each_response():
    mask, rewards, values = torch.ones(2, 4).bool(), torch.randn(2, 4), torch.randn(2, 4)
    got = gae(rewards, values, mask, gae_lambda=torch.tensor([0.2, 0.9]))
    for row, lam in enumerate((0.2, 0.9)):
        alone = gae(rewards[row : row + 1], values[row : row + 1], mask[:1], gae_lambda=lam)
        torch.testing.assert_close(got.advantages[row], alone.advantages[0])


def test_length_adaptive_lambda_by_hand():
    got = length_adaptive_lambda(torch.tensor([1, 20, 100, 1000]))
    torch.testing.assert_close(got, torch.tensor([0.0, 0.0, 0.8, 0.98]))
    with pytest.raises(ValueError, match=r"alpha must be above 0, got 0"):
        length_adaptive_lambda(torch.tensor([1]), alpha=0)


def test_nothing_carries_a_gradient():
    values = torch.randn(2, 3, requires_grad=True)
    mask, groups = torch.ones(2, 3).bool(), torch.tensor([0, 0])
    found = (
        *gae(values, values, mask),
        whiten(values, mask),
        token_rewards(values[:, 0], values, mask, kl_coef=0.1),
        group_advantages(values[:, 0], groups),
        leave_one_out_advantages(values[:, 0], groups),
    )
    assert not any(each.requires_grad for each in found)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_cells(shape):
    nothing = torch.zeros(shape)
    assert gae(nothing, nothing, nothing.bool()).returns.shape == shape
    assert whiten(nothing, nothing.bool()).shape == shape


@settings(deadline=None)
@given(padded())
def test_token_rewards_equal_a_slow_loop(table):
    mask, scores, kl = table
    got = token_rewards(scores[:, 0], kl, mask, kl_coef=0.3)
    for row in range(len(mask)):
        slow, places = [0.0] * mask.shape[1], mask[row].nonzero()[:, 0].tolist()
        for place in places:
            slow[place] = -0.3 * float(kl[row, place])
        if places:
            slow[places[-1]] += float(scores[row, 0])
        assert got[row].tolist() == pytest.approx(slow, abs=1e-12)


def test_the_score_stands_at_the_last_token_that_is_trained():
    """miles#1827 again: not in the last column, nor in a masked last token, where it would be lost."""
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, True, False]])
    got = token_rewards(torch.tensor([1.0, 2.0, 3.0]), torch.full((3, 4), 0.5), mask, kl_coef=0.2)
    expected = [[-0.1, -0.1, -0.1, 0.9], [-0.1, 1.9, 0.0, 0.0], [-0.1, 0.0, 2.9, 0.0]]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_leaving_the_reference_costs():
    """A penalty of the wrong sign still learns the score, and passes every test that looks at the score alone."""
    mask, scores = torch.ones(1, 3).bool(), torch.tensor([1.0])
    near, far = (
        discounted_returns(token_rewards(scores, torch.full((1, 3), kl), mask, kl_coef=0.1), mask)[0, 0]
        for kl in (0.0, 2.0)
    )
    assert float(near - far) == pytest.approx(0.1 * 3 * 2.0)


def test_whitened_by_hand():
    """1, 3, 5, 7 have mean 4 and variance 5."""
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 7.0]])
    mask = values < 99
    got = whiten(values, mask)
    torch.testing.assert_close(got[mask], torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5))
    kept = whiten(values, mask, shift_mean=False)
    torch.testing.assert_close(kept[mask], torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5) + 4)
    assert not kept[~mask].any()


def test_whitening_with_the_moments_of_all_ranks_is_that_of_the_whole():
    values, mask = torch.randn(6, 5), torch.rand(6, 5) < 0.7
    variance, mean = torch.var_mean(values[mask], correction=0)
    parts = [whiten(values[rows], mask[rows], mean=mean, var=variance) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), whiten(values, mask))
    assert not torch.allclose(whiten(values[:2], mask[:2]), parts[0])


@pytest.mark.parametrize("value", [0.1, 1000.1, -7.3, 0.0])
def test_equal_values_are_whitened_to_nought(value):
    values, mask = torch.full((3, 7), value), torch.ones(3, 7).bool()
    assert not whiten(values, mask).any()
    torch.testing.assert_close(whiten(values, mask, shift_mean=False), values)
    assert not whiten(values[:1, :1], mask[:1, :1]).any()


def test_nothing_counts_and_nothing_is_left():
    values, mask = torch.tensor([math.nan, 1.0]), torch.zeros(2).bool()
    assert whiten(values, mask).tolist() == [0.0, 0.0]
    assert whiten(values, mask, shift_mean=False).tolist() == [0.0, 0.0]


def test_a_broken_number_is_seen():
    """One NaN that counts must not become a quiet 0 for all."""
    scores, groups = torch.tensor([1.0, math.nan, 2.0, 3.0]), torch.tensor([0, 0, 1, 1])
    assert whiten(scores, torch.ones(4).bool()).isnan().all()
    assert group_advantages(scores, groups).isnan().tolist() == [True, True, False, False]
    assert group_advantages(scores, groups, scale="batch").isnan().all()


def test_all_that_hardly_differs_stays_small():
    assert whiten(torch.tensor([1e-7, -1e-7]), torch.ones(2).bool()).abs().max() < 2e-3


def slow_groups(scores, groups, scale):
    found = []
    for score, group in zip(scores, groups, strict=True):
        mine = [other for other, its in zip(scores, groups, strict=True) if its == group]
        spread = {"group": mine, "batch": scores}.get(scale, [])
        mean = sum(spread) / max(len(spread), 1)
        std = math.sqrt(sum((each - mean) ** 2 for each in spread) / max(len(spread) - 1, 1))
        difference = score - sum(mine) / len(mine)
        found.append(difference if scale == "none" else 0.0 if std < 1e-9 else difference / (std + 1e-4))
    return found


def slow_leave_one_out(scores, groups):
    found = []
    for place, score in enumerate(scores):
        others = [scores[i] for i in range(len(scores)) if groups[i] == groups[place] and i != place]
        found.append(score - sum(others) / len(others) if others else 0.0)
    return found


GROUPED = st.lists(st.tuples(st.sampled_from([0.0, 1.0, -2.5, 4.0]), st.integers(-2, 3)), min_size=1, max_size=9)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@settings(deadline=None)
@given(GROUPED)
def test_group_advantages_equal_a_slow_loop(scale, rows):
    scores, groups = zip(*rows, strict=True)
    got = group_advantages(torch.tensor(scores, dtype=torch.float64), torch.tensor(groups), scale=scale)
    assert got.tolist() == pytest.approx(slow_groups(scores, groups, scale), abs=1e-9)


@settings(deadline=None)
@given(GROUPED)
def test_leave_one_out_equals_a_slow_loop(rows):
    scores, groups = zip(*rows, strict=True)
    got = leave_one_out_advantages(torch.tensor(scores, dtype=torch.float64), torch.tensor(groups))
    assert got.tolist() == pytest.approx(slow_leave_one_out(scores, groups), abs=1e-9)


def test_groups_by_hand():
    """Group 0: 1, 2, 6 of mean 3 and variance (4 + 1 + 9) / 2 = 7; without each: 4, 3.5, 1.5. Group 1 is alone."""
    scores, groups = torch.tensor([1.0, 9.0, 2.0, 6.0]), torch.tensor([0, 1, 0, 0])
    root = math.sqrt(7)
    expected = torch.tensor([-2 / root, 0.0, -1 / root, 3 / root])
    torch.testing.assert_close(group_advantages(scores, groups), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(group_advantages(scores, groups, scale="none"), torch.tensor([-2.0, 0.0, -1.0, 3.0]))
    torch.testing.assert_close(leave_one_out_advantages(scores, groups), torch.tensor([-3.0, 0.0, -1.5, 4.5]))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_group_keeps_its_shape_whatever_its_size(scale, size):
    """OpenRLHF#1250: with one response a prompt a broadcast made (L, L) of (L,)."""
    scores, groups = torch.randn(3 * size), torch.arange(3).repeat_interleave(size)
    for got in (group_advantages(scores, groups, scale=scale), leave_one_out_advantages(scores, groups)):
        assert got.shape == scores.shape
        assert got.isfinite().all()
        assert got.any() == (size > 1)


@pytest.mark.parametrize("value", [0.1, 1000.1, -7.3])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_groups_of_equal_scores_teach_nothing(value, scale):
    scores, groups = torch.full((21,), value), torch.arange(3).repeat_interleave(7)
    assert not group_advantages(scores, groups, scale=scale).any()
    assert leave_one_out_advantages(scores, groups).abs().max() <= abs(value) * 1e-6


def test_scale_of_another_name():
    with pytest.raises(ValueError, match=r"scale must be 'group', 'batch' or 'none', got 'std'"):
        group_advantages(torch.zeros(2), torch.zeros(2).long(), scale="std")


@pytest.mark.parametrize("name", ["gamma", "gae_lambda", "value_lambda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, torch.tensor([0.5, 1.5])])
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got"):
        gae(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2).bool(), **{name: value})


def test_shapes_are_refused():
    cells, mask, vector = torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.zeros(3)
    for call, message in (
        (lambda: gae(cells, vector, mask), r"per cell \(L, R\), got rewards \(2, 3\), values \(3,\)"),
        (lambda: discounted_returns(cells, mask[:, :1]), r"response_mask \(2, 1\)"),
        (
            lambda: token_rewards(vector, cells, mask, kl_coef=0.1),
            r"sequence \(L,\), got scores \(3,\), lengths \(2,\)",
        ),
        (
            lambda: token_rewards(vector[:2], cells[:, :1], mask, kl_coef=0.1),
            r"got kl \(2, 1\), response_mask \(2, 3\)",
        ),
        (lambda: whiten(cells, mask[0]), r"values \(2, 3\) and mask \(3,\) differ"),
        (lambda: group_advantages(vector, mask[:, 0].long()), r"scores \(3,\), groups \(2,\)"),
        (lambda: leave_one_out_advantages(cells, cells.long()), r"scores \(2, 3\), groups \(2, 3\)"),
        (lambda: length_adaptive_lambda(cells), r"lengths \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
