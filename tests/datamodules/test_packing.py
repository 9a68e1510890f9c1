"""Packing keeps every pair, never exceeds the budget with more than one pair, and does not depend on luck."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.packing import TokenPair, fill_bins, pack_pairs

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


def test_first_fit_largest_first():
    assert fill_bins([4, 3, 6, 1, 2], capacity=8) == [[0, 1, 3], [2, 4]]
    assert fill_bins([9, 1], capacity=8) == [[0], [1]]
    assert fill_bins([], capacity=8) == []


def test_an_empty_step_is_a_batch():
    batch = pack_pairs([], 8, notes={"dropped/empty_response": 2}, cursor=(1, 2))
    assert batch == ((), {"dropped/empty_response": 2}, (1, 2))


@pytest.mark.parametrize("empty", ["prompt", "chosen", "rejected"])
def test_an_empty_part_is_refused(empty):
    pair = TokenPair([1], [2], [3], row="a.jsonl:1")._replace(**{empty: []})
    with pytest.raises(ValueError, match=r"row 'a.jsonl:1' has an empty prompt or response"):
        pack_pairs([pair], 8)
