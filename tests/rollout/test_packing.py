"""Responses to forests and back: nothing is lost, nothing comes twice, what lies behind a response is never read."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lit_rlhf.rollout.packing import pack, packed_values, padded_values

BUDGETS = (1, 9, 14, 25, 10**6)


def texts_of(forest):
    """Every sequence of a forest in tokens, and which of its tokens are scored."""
    scored = set(forest.targets.tolist())
    for leaf in forest.leaves:
        spans = [(forest.starts[part], forest.lengths[part]) for part in forest.path(leaf)]
        places = [at for start, length in spans for at in range(start, start + length)]
        yield [int(forest.tokens[at]) for at in places], [at in scored for at in places]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("garbage", [False, True])
@pytest.mark.parametrize("members", [range(8), (1, 2, 5), (0, 7), ()])
def test_every_member_is_there_once_with_its_prompt(make_rollouts, budget, garbage, members):
    rollouts = make_rollouts(garbage=garbage)
    packed = pack(rollouts, members, budget)
    assert [member for batch in packed for member in batch.members.tolist()] == list(members)
    found = [text for batch in packed for text in texts_of(batch.forest)]
    for member, (text, scored) in zip(members, found, strict=True):
        prompt, length = rollouts.prompts[member].tokens, int(rollouts.lengths[member])
        assert text == [*prompt, *rollouts.tokens[member, :length].tolist()]
        assert scored == [False] * len(prompt) + [True] * length


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_forest_is_within_the_budget_or_holds_one_response(make_rollouts, budget):
    for batch in pack(make_rollouts(range(9), 3), range(27), budget):
        assert batch.forest.num_tokens <= budget or len(batch.members) == 1


def test_forests_are_as_full_as_their_order_allows(make_rollouts):
    rollouts = make_rollouts(range(9), 3)
    packed = pack(rollouts, range(27), 40)
    for batch, following in pairwise(packed):
        both = pack(rollouts, [*batch.members.tolist(), int(following.members[0])], 10**6)
        assert len(both) == 1
        assert both[0].forest.num_tokens > 40


def test_a_prompt_is_computed_once_for_its_responses(make_rollouts):
    rollouts = make_rollouts(range(2), 3)
    (batch,) = pack(rollouts, range(6), 10**6)
    prompts = sum(len(rollouts.prompts[first].tokens) for first in (0, 3))
    assert batch.forest.num_tokens == prompts + int(rollouts.lengths.sum())
    assert [parent for parent in batch.forest.parents if parent == -1] == [-1, -1]


def test_a_state_that_a_response_is_chosen_in_is_that_of_the_last_token_of_its_prompt(make_rollouts):
    rollouts = make_rollouts()
    (batch,) = pack(rollouts, range(8), 10**6)
    forest, at = batch.forest, 0
    for member in range(8):
        assert int(forest.tokens[forest.predictors[at]]) == rollouts.prompts[member].tokens[-1]
        assert int(forest.tokens[forest.targets[at]]) == int(rollouts.tokens[member, 0])
        assert int(forest.positions[forest.predictors[at]]) == len(rollouts.prompts[member].tokens) - 1
        at += int(rollouts.lengths[member])


@pytest.mark.parametrize("budget", BUDGETS)
def test_there_and_back(make_rollouts, budget):
    """``padded[mask]`` and the scored tokens of the forests stand side by side."""
    rollouts = make_rollouts(garbage=True)
    mask = rollouts.response_mask
    numbers = torch.where(mask, torch.randn(mask.shape), float("nan"))
    packed = pack(rollouts, range(8), budget)
    parts = [packed_values(numbers, rollouts, batch) for batch in packed]
    assert torch.cat(parts).equal(numbers[mask])
    for part, batch in zip(parts, packed, strict=True):
        assert len(part) == len(batch.forest.targets)
    assert padded_values(parts, rollouts, packed).equal(numbers.nan_to_num(0.0))
    drawn = torch.cat([batch.forest.tokens[batch.forest.targets] for batch in packed])
    assert drawn.equal(rollouts.tokens[mask])


def test_numbers_come_back_in_float32(make_rollouts):
    rollouts = make_rollouts()
    packed = pack(rollouts, range(8), 10**6)
    part = torch.ones(len(packed[0].forest.targets), dtype=torch.bfloat16)
    assert padded_values([part], rollouts, packed).dtype == torch.float32


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_belongs_together_is_not_parted(make_rollouts, budget):
    rollouts = make_rollouts()
    packed = pack(rollouts, (0, 1, 4, 5, 6, 7), budget, together=2)
    assert [member for batch in packed for member in batch.members.tolist()] == [0, 1, 4, 5, 6, 7]
    for batch in packed:
        assert all(one + 1 == other for one, other in batch.members.view(-1, 2).tolist())


def test_none_is_packed_into_nothing(make_rollouts):
    rollouts = make_rollouts((), 2)
    assert pack(rollouts, (), 10) == []
    assert padded_values([], rollouts, []).shape == (0, 1)
