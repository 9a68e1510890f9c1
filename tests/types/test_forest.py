"""The forest: what packing lays down, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.types import Forest, Picture, Segment, num_sequence_tokens


def inner(*tokens, parent=-1):
    return Segment(tokens, [False] * len(tokens), parent)


def leaf(*tokens, parent=0):
    return Segment(tokens, [True] * len(tokens), parent)


def test_a_pair_and_a_plain_sequence_by_hand():
    forest = Forest.pack([[inner(5, 6), leaf(7), leaf(8, 9)], [Segment([3, 4], [False, True])]])
    assert forest.tokens.tolist() == [5, 6, 7, 8, 9, 3, 4]
    assert forest.positions.tolist() == [0, 1, 2, 2, 3, 0, 1]
    assert forest.targets.tolist() == [2, 3, 4, 6]
    assert forest.predictors.tolist() == [1, 1, 3, 5]
    assert forest.sequences.tolist() == [0, 1, 1, 2]
    assert forest.lengths == (2, 1, 2, 2)
    assert forest.parents == (-1, 0, 0, -1)
    assert forest.starts == (0, 2, 3, 5)
    assert forest.leaves == (1, 2, 3)
    assert (forest.num_tokens, forest.num_sequences, num_sequence_tokens(forest)) == (7, 3, 9)


def test_the_pictures_of_a_prompt_are_held_once_and_seen_by_all_of_its_responses():
    one, two, three = (Picture({"pixel_values": torch.zeros(1)}, 1, name) for name in ("one", "two", "three"))
    shared = inner(5, 6)._replace(pictures=(one, two))
    plain = Segment([3, 4], [False, True], pictures=(three,))
    forest = Forest.pack([[shared, leaf(7), leaf(8)], [inner(1), leaf(2)], [plain]])
    assert forest.pictures == (one, two, three)
    assert forest.holders == (0, 0, 5)
    assert [forest.seen_in(part) for part in forest.leaves] == [(one, two), (one, two), (), (three,)]
    moved = forest.to(torch.device("meta"))
    assert [picture.inputs["pixel_values"].device.type for picture in moved.pictures] == ["meta"] * 3
    assert moved.holders == forest.holders
    assert [picture.digest for picture in moved.pictures] == ["one", "two", "three"]


def test_a_grandchild_and_an_empty_segment():
    forest = Forest.pack([[inner(1, 2), inner(parent=0), leaf(3, parent=1), leaf(4, 5, parent=1)]])
    assert forest.path(3) == (0, 1, 3)
    assert forest.predictors.tolist() == [1, 1, 3]
    assert forest.positions.tolist() == [0, 1, 2, 2, 3]


def test_it_moves_as_a_whole():
    forest = Forest.pack([[inner(1), leaf(2)]])
    moved = forest.to(torch.device("meta"))
    assert {part.device.type for part in moved[:5]} == {"meta"}
    assert moved[5:] == forest[5:]


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        ([], "at least one token"),
        ([[inner(1, parent=0)]], "one root"),
        ([[inner(1), leaf(2, parent=-1)]], "segment 1 has parent -1"),
        ([[inner(1), leaf(2, parent=1)]], "segment 1 has parent 1"),
        ([[inner(1), Segment([2, 3], [True], 0)]], "segment 1: 2 tokens but 1 scored"),
        ([[leaf(1, 2, parent=-1)]], "nothing precedes it"),
        ([[inner(), leaf(2)]], "nothing precedes it"),
        ([[Segment([1, 2], [False, True]), leaf(2)]], "segment 0 has children"),
        ([[inner(1), leaf(2)], [inner(), inner(parent=0)]], "ends in segment 1 has no tokens"),
    ],
)
def test_refusals(trees, message):
    with pytest.raises(ValueError, match=message):
        Forest.pack(trees)


@st.composite
def trees(draw):
    """Lists of (length, parent); every sequence has a token."""
    later = [(draw(st.integers(0, 3)), draw(st.integers(0, number))) for number in range(draw(st.integers(0, 5)))]
    return [(draw(st.integers(1, 4)), -1), *later]


@settings(deadline=None)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_every_sequence_reads_as_if_it_stood_alone(shapes):
    number, packed, texts = 0, [], []
    for shape in shapes:
        parents = {parent for _, parent in shape}
        tree, spelled = [], []
        for index, (length, parent) in enumerate(shape):
            tokens = list(range(number, number := number + length))
            before = spelled[parent] if index else []
            spelled.append(before + tokens)
            is_leaf = index not in parents
            tree.append(Segment(tokens, [is_leaf and bool(before or at) for at in range(length)], parent))
            texts += [spelled[-1]] if is_leaf else []
        packed.append(tree)
    forest = Forest.pack(packed)
    assert forest.tokens.tolist() == list(range(number))
    for target, predictor, sequence in zip(
        forest.targets.tolist(), forest.predictors.tolist(), forest.sequences.tolist(), strict=True
    ):
        at = texts[sequence].index(target)
        assert texts[sequence][at - 1] == predictor
        assert forest.positions[target] == at
    for sequence, segment in enumerate(forest.leaves):
        spans = [
            range(forest.starts[part], forest.starts[part] + forest.lengths[part]) for part in forest.path(segment)
        ]
        assert [token for span in spans for token in span] == texts[sequence]


def test_the_end_of_every_sequence():
    pair, alone = [inner(1, 2), leaf(3), leaf(4, 5)], [inner(6, 7, 8)]
    assert Forest.pack([pair, alone]).ends == (2, 4, 7)
    assert Forest.pack([[inner(1, 2), leaf(), leaf(4)]]).ends == (1, 2)
