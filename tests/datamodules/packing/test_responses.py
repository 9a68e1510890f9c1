"""Responses that were judged one by one, packed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.packing import TokenResponse, TokenTree, pack_graded, pack_steps, pack_unpaired
from lit_rlhf.types import Cursor

TOKENS = st.lists(st.integers(0, 99), min_size=1, max_size=6)


def test_unpaired_responses_keep_their_labels(sequence, responses):
    rows = [
        TokenTree([1], responses([5]), labels=[True], row="a:1", source="a"),
        TokenTree([2, 2], responses([6], [7, 7]), labels=[False, True], row="b:1", source="b"),
    ]
    (micro,) = pack_unpaired(rows, 20, {"dropped/x": 1}, Cursor(1)).micro_batches
    assert [sequence(micro.forest, number) for number in range(3)] == [([1], [5]), ([2, 2], [6]), ([2, 2], [7, 7])]
    assert micro.labels.tolist() == [True, False, True]
    assert (micro.rows, micro.sources) == (("a:1", "b:1", "b:1"), ("a", "b", "b"))
    assert len(pack_unpaired(rows, 3).micro_batches) == 2
    for labels in ([], [True, False]):
        with pytest.raises(ValueError, match=rf"row 'a:1' has 1 responses but {len(labels)} labels"):
            pack_unpaired([rows[0]._replace(labels=labels)], 8)


@st.composite
def graded_trees(draw):
    """A prompt with up to four responses, each with a rank and the grades by two objectives."""
    texts = draw(st.lists(TOKENS, min_size=1, max_size=4))
    grade = st.floats(-9, 9, width=16) | st.just(math.nan)
    grades = [(draw(grade), draw(grade)) for _ in texts]
    ranks = [draw(st.integers(0, 3)) for _ in texts]
    said = {"ranks": ranks, "grades": grades, "row": str(draw(st.integers())), "source": draw(st.sampled_from("ab"))}
    return TokenTree(draw(TOKENS), [TokenResponse(ids, [True] * len(ids)) for ids in texts], **said)


@given(st.lists(graded_trees(), max_size=8), st.integers(1, 40))
def test_every_response_once_with_what_is_known_of_it(sequence, trees, token_budget):
    found, whole = [], []
    for micro in pack_graded(trees, token_budget).micro_batches:
        assert micro.forest.num_tokens <= token_budget or micro.groups.max() == 0
        assert micro.grades.dtype == torch.float32
        numbers = sorted(set(micro.groups.tolist()))
        assert numbers == list(range(len(numbers)))
        assert micro.groups.tolist() == sorted(micro.groups.tolist())
        said = zip(micro.groups, micro.ranks, micro.grades, micro.rows, micro.sources, strict=True)
        for number, (group, rank, grades, row, source) in enumerate(said):
            prompt, tokens = sequence(micro.forest, number)
            found.append((row, source, prompt, tokens, int(rank), repr(grades.tolist())))
            whole.append((len(whole) - number, int(group), row))
    expected = [
        (tree.row, tree.source, tree.prompt, response.tokens, rank, repr(list(grades)))
        for tree in trees
        for response, rank, grades in zip(tree.responses, tree.ranks, tree.grades, strict=True)
    ]
    assert sorted(found) == sorted(expected)
    assert len({(micro, group) for micro, group, _ in whole}) == len(trees)


def test_responses_may_have_no_objectives(responses):
    (micro,) = pack_graded([TokenTree([1], responses([5], [6]), ranks=[0, 0], grades=[[], []])], 8).micro_batches
    assert micro.grades.shape == (2, 0)


@pytest.mark.parametrize(("ranks", "grades"), [([0], [[1.0], [2.0]]), ([0, 1], [[1.0]]), ([], [])])
def test_a_rank_and_grades_for_each_response(responses, ranks, grades):
    tree = TokenTree([1], responses([5], [6]), row="a:1", ranks=ranks, grades=grades)
    said = f"2 responses but {len(ranks)} ranks and {len(grades)} lists of grades"
    with pytest.raises(ValueError, match=f"row 'a:1' has {said}"):
        pack_graded([tree], 8)
    with pytest.raises(ValueError, match="has 0 responses"):
        pack_graded([tree._replace(responses=[], ranks=[], grades=[])], 8)


def test_the_ends_of_steps_keep_their_labels():
    one = TokenTree([1], [TokenResponse([5, 6, 7], [False, True, True])], step_labels=[0.5, 0.0], row="a:1", source="a")
    two = TokenTree([2, 2], [TokenResponse([8], [True])], step_labels=[1.0], row="b:1", source="b")
    (micro,) = pack_steps([one, two], 20, {"ignored/cut_steps": 1}, Cursor(1)).micro_batches
    assert (micro.forest.targets.tolist(), micro.forest.sequences.tolist()) == ([2, 3, 6], [0, 0, 1])
    assert (micro.labels.tolist(), micro.labels.dtype) == ([0.5, 0.0, 1.0], torch.float32)
    assert (micro.rows, micro.sources) == (("a:1", "b:1"), ("a", "b"))
    batch = pack_steps([one, two], 4, {"ignored/cut_steps": 1}, Cursor(1))
    assert [part.labels.tolist() for part in batch.micro_batches] == [[0.5, 0.0], [1.0]]
    assert (batch.notes, batch.cursor) == ({"ignored/cut_steps": 1, "tokens": 7, "room": 8}, Cursor(1))
    for labels in ([], [1.0]):
        with pytest.raises(ValueError, match=rf"row 'a:1' marks 2 ends of steps but has {len(labels)} labels"):
            pack_steps([one._replace(step_labels=labels)], 8)
    with pytest.raises(ValueError, match="row 'a:1' marks 0 ends of steps"):
        pack_steps([one._replace(step_labels=[], responses=[TokenResponse([5], [False])])], 8)
