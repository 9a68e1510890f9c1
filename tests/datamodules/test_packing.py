"""Packing keeps every row, never exceeds the budget with more than one row, and does not depend on luck."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.packing import (
    TokenPair,
    TokenResponse,
    TokenSequence,
    TokenTree,
    fill_bins,
    pack_pairs,
    pack_sequences,
    pack_trees,
    pack_unpaired,
)
from lit_rlhf.types import Cursor

TOKENS = st.lists(st.integers(0, 99), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(TOKENS, TOKENS, TOKENS), max_size=20)


@given(PAIRS, st.integers(1, 60))
def test_every_pair_once_within_the_budget(pairs, token_budget):
    pairs = [TokenPair(*tokens, margin=number, row=str(number)) for number, tokens in enumerate(pairs)]
    batch = pack_pairs(pairs, token_budget)
    assert batch.num_pairs == len(pairs)
    for micro in batch.micro_batches:
        assert micro.forest.num_tokens <= token_budget or len(micro.rows) == 1
        assert micro.rows == tuple(map(str, micro.margins.int().tolist()))
        for number, row in enumerate(micro.rows):
            pair = pairs[int(row)]
            assert sequence(micro.forest, micro.chosen[number]) == (pair.prompt, pair.chosen)
            assert sequence(micro.forest, micro.rejected[number]) == (pair.prompt, pair.rejected)


def sequence(forest, number):
    """Tokens of the root and scored tokens of a sequence."""
    root, leaf = forest.path(forest.leaves[number])
    start = forest.starts[root]
    scored = forest.targets[forest.sequences == number]
    assert scored.tolist() == list(range(forest.starts[leaf], forest.starts[leaf] + forest.lengths[leaf]))
    return forest.tokens[start : start + forest.lengths[root]].tolist(), forest.tokens[scored].tolist()


def responses(*tokens):
    return [TokenResponse(ids, [True] * len(ids)) for ids in tokens]


@st.composite
def trees(draw):
    """A tree of up to five responses with preferences between some of them."""
    texts = draw(st.lists(TOKENS, min_size=2, max_size=5))
    index = st.integers(0, len(texts) - 1)
    pairs = draw(st.lists(st.tuples(index, index, st.floats(0, 9, width=16)), min_size=1, max_size=6))
    return TokenTree(draw(TOKENS), responses(*texts), pairs, row=str(draw(st.integers())), source="a")


@given(st.lists(trees(), max_size=10), st.integers(1, 60))
def test_every_preference_once(rows, token_budget):
    batch = pack_trees(rows, token_budget)
    expected = [
        (tree.prompt, tree.responses[better].tokens, tree.responses[worse].tokens, margin, tree.row)
        for tree in rows
        for better, worse, margin in tree.preferences
    ]
    found = []
    for micro in batch.micro_batches:
        assert set(micro.chosen.tolist() + micro.rejected.tolist()) == set(range(micro.forest.num_sequences))
        for chosen, rejected, margin, row in zip(micro.chosen, micro.rejected, micro.margins, micro.rows, strict=True):
            prompt, better = sequence(micro.forest, chosen)
            found.append((prompt, better, sequence(micro.forest, rejected)[1], float(margin), row))
    assert sorted(found) == sorted(expected)


def test_responses_that_nobody_compares_are_left_out():
    tree = TokenTree([1], responses([5], [6, 6], [7]), [(2, 0, 0.5)])
    (micro,) = pack_trees([tree], 8).micro_batches
    assert micro.forest.tokens.tolist() == [1, 5, 7]
    assert (micro.chosen.tolist(), micro.rejected.tolist()) == ([1], [0])
    with pytest.raises(ValueError, match=r"row 'a:1' has no preference between its responses"):
        pack_trees([tree._replace(preferences=[], row="a:1")], 8)


def test_tokens_that_are_not_scored_stay_unscored():
    tree = TokenTree([1], [TokenResponse([5, 6], [True, False]), TokenResponse([7], [True])], [(0, 1, 0.0)])
    (micro,) = pack_trees([tree], 8).micro_batches
    assert micro.forest.targets.tolist() == [1, 3]


def test_unpaired_responses_keep_their_labels():
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


def test_sequences_keep_their_masks():
    rows = [
        TokenSequence([1, 5, 6], [False, False, True], "a:1", "a"),
        TokenSequence([1, 7], [False, True], "b:1", "b"),
    ]
    (micro,) = pack_sequences(rows, 5).micro_batches
    assert micro.forest.tokens.tolist() == [1, 5, 6, 1, 7]
    assert micro.forest.targets.tolist() == [2, 4]
    assert micro.forest.parents == (-1, -1)
    assert (micro.rows, micro.sources) == (("a:1", "b:1"), ("a", "b"))
    assert [part.rows for part in pack_sequences(rows, 4).micro_batches] == [("a:1",), ("b:1",)]
    with pytest.raises(ValueError, match="the first token of a tree cannot be scored"):
        pack_sequences([TokenSequence([1], [True])], 5)


def test_first_fit_largest_first():
    assert fill_bins([4, 3, 6, 1, 2], capacity=8) == [[0, 1, 3], [2, 4]]
    assert fill_bins([9, 1], capacity=8) == [[0], [1]]
    assert fill_bins([5, 4, 2, 2], capacity=7) == [[0, 2], [1, 3]]
    assert fill_bins([], capacity=8) == []


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 40))
def test_bins_hold_what_a_plain_search_puts_there(sizes, capacity):
    bins = []
    for size, index in sorted(
        ((size, index) for index, size in enumerate(sizes)), key=lambda item: (-item[0], item[1])
    ):
        fitting = (items for items in bins if sum(sizes[item] for item in items) + size <= capacity)
        items = next(fitting, None)
        if items is None:
            bins.append(items := [])
        items.append(index)
    assert fill_bins(sizes, capacity) == sorted(map(sorted, bins))


def test_the_fill_is_counted():
    pairs = [TokenPair([1], [2, 2], [3]), TokenPair([1], [2], [3]), TokenPair([1] * 9, [2], [3])]
    batch = pack_pairs(pairs, 8, {"dropped/x": 1})
    assert batch.notes == {"dropped/x": 1, "tokens": 4 + 3 + 11, "room": 8 + 11}


def test_an_empty_step_is_a_batch():
    for pack in (pack_pairs, pack_trees, pack_unpaired, pack_sequences):
        batch = pack([], 8, notes={"dropped/empty_response": 2}, cursor=Cursor(1, 2))
        assert batch == ((), {"dropped/empty_response": 2}, Cursor(1, 2))


@pytest.mark.parametrize("empty", ["prompt", "chosen", "rejected"])
def test_an_empty_part_is_refused(empty):
    pair = TokenPair([1], [2], [3], row="a.jsonl:1")._replace(**{empty: []})
    with pytest.raises(ValueError, match=r"row 'a.jsonl:1' has an empty prompt or response"):
        pack_pairs([pair], 8)
