"""Groups: who is compared with whom, and what is left where nobody is better than another."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.losses.advantages import group_advantages, leave_one_out_advantages
from lit_rlhf.rollout import groups as room
from lit_rlhf.rollout.groups import (
    advantages_over_ranks,
    best_and_worst,
    require_groups,
    require_whole_responses,
    select,
    without_spread,
)
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions
from lit_rlhf.types import Prompt, Rollouts

EVERYONE = torch.tensor([1.0, 3.0, 5.0, 5.0, 2.0, 8.0, 0.9, 0.9, 0.9])
GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])


def test_equal_scores_have_no_spread_whatever_the_others_are():
    assert without_spread(EVERYONE, GROUPS).tolist() == [False, False, True, True, False, False, True, True, True]
    assert without_spread(torch.zeros(0), torch.zeros(0).long()).tolist() == []


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("cut", [0, 2, 6, 9])
def test_two_ranks_say_what_one_says(monkeypatch, scale, cut):
    """The groups of a rank are numbered from 0: those of two ranks must not be mistaken for one another."""
    whole = advantages_over_ranks(group_advantages, EVERYONE, GROUPS, scale=scale)
    local = [GROUPS[:cut], GROUPS[cut:] - (GROUPS[cut] if cut < 9 else 0)]
    names = [local[0], local[1] + cut]
    found = []
    for rank, part in enumerate((slice(0, cut), slice(cut, 9))):
        answers = iter([EVERYONE[:, None], torch.cat(names)[:, None]])

        def gather(rows, rank=rank, answers=answers, part=part):
            everyone = next(answers)
            assert torch.equal(everyone[part], rows)
            return everyone, cut * rank

        monkeypatch.setattr(room, "gather_rows", gather)
        found.append(advantages_over_ranks(group_advantages, EVERYONE[part], local[rank], scale=scale))
    assert torch.equal(torch.cat(found), whole)


def test_equal_scores_are_worth_exactly_nothing():
    """The mean of three times 0.9 is not 0.9 in float32."""
    for function in (leave_one_out_advantages, lambda scores, groups: group_advantages(scores, groups, scale="none")):
        found = advantages_over_ranks(function, EVERYONE, GROUPS)
        assert found[6:].tolist() == [0.0, 0.0, 0.0]
        assert found[:2].tolist() != [0.0, 0.0]


def test_best_and_worst_are_chosen_among_those_that_may_be():
    scores = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 0.0, 9.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    assert best_and_worst(scores, groups, torch.ones(7).bool()).tolist() == [[1, 0], [6, 5]]
    allowed = torch.tensor([True, False, True, True, True, True, False])
    assert best_and_worst(scores, groups, allowed).tolist() == [[2, 0]]
    assert best_and_worst(scores, groups, torch.zeros(7).bool()).shape == (0, 2)
    assert best_and_worst(scores[:0], groups[:0], allowed[:0]).shape == (0, 2)


def test_selected_responses_stay_whole():
    prompts = tuple(Prompt((number,), str(number), (), {}, f"row:{number}", "rows") for number in (0, 0, 1))
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    tokens = torch.tensor([[7, 0], [8, 9], [5, 6]])
    rollouts = Rollouts(prompts, torch.tensor([0, 0, 1]), tokens, mask, -tokens.float(), mask[:, 1])
    chosen = select(rollouts, torch.tensor([2, 0]))
    assert [prompt.row for prompt in chosen.prompts] == ["row:1", "row:0"]
    assert chosen.groups.tolist() == [1, 0]
    assert chosen.tokens.tolist() == [[5, 6], [7, 0]]
    assert chosen.lengths.tolist() == [2, 1]
    assert chosen.logprobs.tolist() == [[-5.0, -6.0], [-7.0, 0.0]]
    assert chosen.finished.tolist() == [True, False]
    assert select(rollouts, torch.zeros(0).long()).tokens.shape == (0, 2)


def test_what_an_algorithm_needs_is_asked_for():
    require_groups(SamplingOptions(num_responses=2), "GRPO", usual=8)
    with pytest.raises(ValueError, match=r"num_responses is 1; GRPO compares .* at least 2, 8 usual"):
        require_groups(SamplingOptions(), "GRPO", usual=8)
    require_whole_responses(UpdateOptions(), "RLOO")
    with pytest.raises(ValueError, match=r"'sequences'; the losses of RLOO are of whole responses"):
        require_whole_responses(UpdateOptions(average="sequences"), "RLOO")
