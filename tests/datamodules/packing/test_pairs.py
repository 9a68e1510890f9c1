"""Preferences, packed: every row is kept, and no micro-batch of more than one row exceeds the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.packing import TokenPair, TokenResponse, TokenTree, pack_pairs, pack_trees

TOKENS = st.lists(st.integers(0, 99), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(TOKENS, TOKENS, TOKENS), max_size=20)


@given(PAIRS, st.integers(1, 60))
def test_every_pair_once_within_the_budget(sequence, pairs, token_budget):
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


@st.composite
def trees(draw):
    """A tree of up to five responses with preferences between some of them."""
    texts = draw(st.lists(TOKENS, min_size=2, max_size=5))
    index = st.integers(0, len(texts) - 1)
    pairs = draw(st.lists(st.tuples(index, index, st.floats(0, 9, width=16)), min_size=1, max_size=6))
    responses = [TokenResponse(ids, [True] * len(ids)) for ids in texts]
    return TokenTree(draw(TOKENS), responses, pairs, row=str(draw(st.integers())), source="a")


@given(st.lists(trees(), max_size=10), st.integers(1, 60))
def test_every_preference_once(sequence, rows, token_budget):
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


def test_responses_that_nobody_compares_are_left_out(responses):
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


@pytest.mark.parametrize("empty", ["prompt", "chosen", "rejected"])
def test_an_empty_part_is_refused(empty):
    pair = TokenPair([1], [2], [3], row="a.jsonl:1")._replace(**{empty: []})
    with pytest.raises(ValueError, match=r"row 'a.jsonl:1' has an empty prompt or response"):
        pack_pairs([pair], 8)
