"""Reward terms: examples by a slow loop, what a loss sees of them, its units, and what it is refused."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf import losses
from lit_rlhf.losses import reward
from lit_rlhf.losses.reward_terms import (
    GIVEN,
    UNITS,
    RewardTerm,
    ScoredExamples,
    graded_examples,
    pair_examples,
    refuse_missing,
    step_examples,
)

NAN = math.nan
REWARD_LOSSES = [name for name, loss in vars(reward).items() if name.endswith("_loss") and name != "conservative_loss"]


def pairs():
    scores = torch.tensor([1.0, 2.0, 4.0, 8.0])
    return pair_examples(scores, torch.tensor([1, 2, 3]), torch.tensor([0, 0, 2]), torch.tensor([0.5, 0.0, 1.5]))


def graded():
    """Two rows by two objectives: three responses, then two; the last one's second grade is unknown."""
    scores = torch.arange(10.0).view(5, 2)
    grades = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 4.0], [1.0, 0.0], [1.0, NAN]])
    return graded_examples(scores, torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, dtype=torch.int64), grades)


def listed(examples):
    return list(zip(*(column.tolist() for column in (examples.scores, examples.ranks, examples.lists)), strict=True))


def paired(examples):
    columns = (examples.chosen_scores, examples.rejected_scores, examples.ties)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_pairs_may_share_responses():
    examples = pairs()
    assert examples.chosen_scores.tolist() == [2.0, 4.0, 8.0]
    assert examples.rejected_scores.tolist() == [1.0, 1.0, 4.0]
    assert examples.margins.tolist() == [0.5, 0.0, 1.5]
    assert examples.ties.tolist() == [False] * 3
    assert all(len(column) == 0 for column in examples[4:])


def test_one_objective_is_ranked_as_the_rows_say_whatever_the_grades():
    scores, grades = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[NAN], [9.0], [7.0], [NAN]])
    examples = graded_examples(scores, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 0]), grades)
    assert listed(examples) == [(1.0, 0, 0), (2.0, 1, 0), (3.0, 0, 1), (4.0, 0, 1)]
    assert paired(examples) == [(1.0, 2.0, False), (3.0, 4.0, True)]
    assert examples.margins.tolist() == [0.0, 0.0]


def test_several_objectives_rank_by_their_own_grades_and_leave_unknown_ones_out():
    examples = graded()
    first, second = {0: "row 0", 2: "row 1"}, {1: "row 0", 3: "row 1"}
    assert {number for _, _, number in listed(examples)} == {*first, *second}
    by_list = {number: [(score, rank) for score, rank, own in listed(examples) if own == number] for number in range(4)}
    assert by_list[0] == [(0.0, 2), (2.0, 0), (4.0, 1)]
    assert by_list[1] == [(1.0, 0), (3.0, 0), (5.0, 2)]
    assert by_list[2] == [(6.0, 0), (8.0, 0)]
    assert by_list[3] == [(7.0, 0)]
    assert not examples.grades.isnan().any()
    assert paired(examples) == sorted(
        [
            *[(2.0, 0.0, False), (2.0, 4.0, False), (4.0, 0.0, False)],
            *[(1.0, 3.0, True), (1.0, 5.0, False), (3.0, 5.0, False)],
            (6.0, 8.0, True),
        ]
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from([NAN, 0.0, 1.0, 2.0])), max_size=7))
def test_lists_and_pairs_equal_a_slow_loop(rows):
    """Each (row, objective) taken alone, from grades that may be unknown."""
    groups = sorted(group for group, _, _ in rows)
    grades = [[float(first), second] for _, first, second in rows]
    scores = torch.arange(2.0 * len(rows)).view(-1, 2)
    examples = graded_examples(
        scores,
        torch.tensor(groups, dtype=torch.int64),
        torch.zeros(len(rows), dtype=torch.int64),
        torch.tensor(grades).view(-1, 2),
    )
    slow_lists, slow_pairs = [], []
    for group in set(groups):
        for objective in range(2):
            known = [
                (grades[at][objective], float(scores[at, objective]))
                for at in range(len(rows))
                if groups[at] == group and not math.isnan(grades[at][objective])
            ]
            slow_lists += [
                (score, sum(other > mine for other, _ in known), group * 2 + objective) for mine, score in known
            ]
            for (one, first), (other, second) in combinations(known, 2):
                slow_pairs.append((second, first, False) if other > one else (first, second, one == other))
    assert sorted(listed(examples)) == sorted(slow_lists)
    assert paired(examples) == sorted(slow_pairs)


def test_a_score_gets_its_gradient_through_every_reader():
    scores = torch.randn(5, 2, requires_grad=True)
    graded_examples(
        scores, torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, dtype=torch.int64), torch.randn(5, 2)
    ).scores.sum().backward()
    assert torch.equal(scores.grad, torch.ones(5, 2))


def test_scores_and_grades_belong_together():
    with pytest.raises(ValueError, match=r"scores \(2, 1\) and grades \(2, 2\) must both be \(L, K\)"):
        graded_examples(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.zeros(2, 2))


UNIT_OF = {
    "bradley_terry_loss": "pairs",
    "centring_loss": "pairs",
    "tied_bradley_terry_loss": "pairs",
    "davidson_loss": "pairs",
    "plackett_luce_loss": "lists",
    "regression_loss": "responses",
    "huber_loss": "responses",
    "step_loss": "steps",
}


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_every_loss_makes_a_term(name):
    term = RewardTerm(getattr(losses, name))
    assert (term.unit, term.name) == (UNIT_OF[name], name.removesuffix("_loss"))
    examples = {"steps": step_examples(torch.randn(3), torch.tensor([1.0, NAN, 0.0])), "pairs": pairs()}
    read = examples.get(term.unit, graded())
    assert term(read).isfinite().all()
    assert term.count(read) == len(term(read)) > 0


def test_a_pair_loss_sees_ties_only_if_it_asks():
    examples = graded()
    untied = [(chosen, rejected) for chosen, rejected, tie in paired(examples) if not tie]
    assert RewardTerm().count(examples) == len(untied) == 5
    expected = sorted(float(-torch.tensor(chosen - rejected).sigmoid().log()) for chosen, rejected in untied)
    assert sorted(RewardTerm()(examples).tolist()) == pytest.approx(expected, rel=1e-4)
    tied = RewardTerm(losses.tied_bradley_terry_loss)
    assert tied.count(examples) == 7
    seen = losses.tied_bradley_terry_loss(examples.chosen_scores, examples.rejected_scores, examples.ties)
    assert torch.equal(tied(examples), seen)


def test_unknown_grades_and_labels_are_no_units():
    scores, grades = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[NAN], [5.0], [3.0]])
    examples = graded_examples(scores, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]), grades)
    assert RewardTerm(losses.regression_loss)(examples).tolist() == [9.0, 0.0]
    assert RewardTerm(lambda scores: scores).count(examples) == 3

    def one_per_list(scores, grades, ranks, lists):
        assert grades.tolist() == [5.0, 3.0]
        assert ranks.tolist() == [1, 2]
        return scores.new_ones(1)

    assert RewardTerm(one_per_list)(examples).tolist() == [1.0]
    steps = step_examples(torch.tensor([0.0, 1.0]), torch.tensor([NAN, 1.0]))
    assert RewardTerm(losses.step_loss)(steps).tolist() == pytest.approx([math.log1p(math.exp(-1))])


def test_a_list_needs_two_different_ranks():
    """Of the four lists of ``graded`` one is a tie of two and one holds one response."""
    term = RewardTerm(losses.plackett_luce_loss)
    assert term.count(graded()) == len(term(graded())) == 2


def test_counts_need_no_scores():
    examples = graded()
    empty = examples._replace(
        chosen_scores=torch.zeros(7), rejected_scores=torch.zeros(7), scores=torch.zeros(len(examples.scores))
    )
    for name in REWARD_LOSSES:
        term = RewardTerm(getattr(losses, name))
        assert term.count(empty) == term.count(examples)


def test_options_reach_the_function():
    term = RewardTerm(losses.bradley_terry_loss, options={"label_smoothing": 0.2, "margin_scale": 2.0})
    read = pairs()
    expected = losses.bradley_terry_loss(
        read.chosen_scores, read.rejected_scores, read.margins, label_smoothing=0.2, margin_scale=2.0
    )
    assert torch.equal(term(read), expected)
    with pytest.raises(ValueError, match="losses: centring has no option 'beta'; its options are: none"):
        RewardTerm(losses.centring_loss, options={"beta": 0.1})


def test_a_loss_that_asks_for_something_else_is_refused():
    with pytest.raises(ValueError, match="asks for rewards; a reward loss may ask for chosen_scores, "):
        RewardTerm(lambda rewards: rewards)
    with pytest.raises(
        ValueError, match=r"asks for chosen_scores, grades; .* those of pairs \(chosen_scores, .*steps \("
    ):
        RewardTerm(lambda chosen_scores, grades: grades)


@pytest.mark.parametrize("function", [lambda scores: scores.mean(), lambda scores: scores[:2]])
def test_a_loss_that_reduces_is_refused(function):
    with pytest.raises(ValueError, match=r"returned \((2,)?\); of 9 responses it must return one number each"):
        RewardTerm(function)(graded())


def test_units_of_every_kind_of_data():
    assert {unit for units in GIVEN.values() for unit in units} == set(UNITS)
    assert {name for names in UNITS.values() for name in names} == set(ScoredExamples._fields)
    terms = [RewardTerm(), RewardTerm(losses.plackett_luce_loss), RewardTerm(losses.regression_loss)]
    refuse_missing(terms, "graded")
    refuse_missing(terms[:1], "pairs")
    refuse_missing([RewardTerm(losses.step_loss)], "steps")
    with pytest.raises(
        ValueError, match=r"plackett_luce needs lists, which data\.kind: pairs does not give; take data"
    ):
        refuse_missing(terms, "pairs")
    with pytest.raises(ValueError, match=r"bradley_terry needs pairs, .* steps does not give; .* pairs or graded"):
        refuse_missing(terms, "steps")
