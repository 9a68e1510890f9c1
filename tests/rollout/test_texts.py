"""Texts to imitate, dealt out: each once, in equal parts, whatever the cut into micro-batches."""

from __future__ import annotations

import pytest
import torch

from datamodules.packing import TokenSequence, pack_sequences
from lit_rlhf.rollout.texts import deal_texts, text_weight
from lit_rlhf.types import Forest, Instructions, Picture, Segment

CPU = torch.device("cpu")


def micro_batches(number, token_budget):
    """Ragged texts; of text n the tokens are 10 n + 1, 10 n + 2, ..., trained from the second or third on."""
    sequences = [
        TokenSequence(
            [10 * row + place + 1 for place in range(3 + row % 4)],
            [place > row % 2 for place in range(3 + row % 4)],
            f"texts:{row % 5}",  # some rows come twice
            "texts",
        )
        for row in range(number)
    ]
    return pack_sequences(sequences, token_budget).micro_batches


def read(parts):
    """The texts of each part: tokens, trained tokens with what predicts them, and the row."""
    found = []
    for part in parts:
        found.append(set())
        for text in part:
            forest = text.forest
            assert forest.num_sequences == len(text.rows) == len(text.sources)
            for number, (start, length, row) in enumerate(zip(forest.starts, forest.lengths, text.rows, strict=True)):
                mine = forest.sequences == number
                tokens = tuple(forest.tokens[start : start + length].tolist())
                trained = tuple(forest.tokens[forest.targets[mine]].tolist())
                before = tuple(forest.tokens[forest.predictors[mine]].tolist())
                assert forest.positions[start : start + length].tolist() == list(range(length))
                found[-1].add((tokens, trained, before, row))
    return found


@pytest.mark.parametrize("num_minibatches", [1, 2, 3, 20])
def test_each_is_dealt_once_whatever_the_cut(num_minibatches):
    (whole,) = read([micro_batches(11, 10**6)])
    assert len(whole) == 11
    parts = read(deal_texts(micro_batches(11, 10**6), num_minibatches, "0:0:0", CPU))
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == 11
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for budget in (1, 9, 20):
        texts = micro_batches(11, budget)
        dealt = deal_texts(texts, num_minibatches, "0:0:0", CPU)
        assert {row[0] for part in read(dealt) for row in part} == {row[0] for row in whole}
        assert all(len(part) <= len(texts) for part in dealt)


def test_rows_that_differ_go_to_the_same_minibatch_whatever_the_cut():
    """Rows that come twice are told apart by their place; the others by their address alone."""
    cut, whole = (deal_texts(micro_batches(5, budget), 2, "key", CPU) for budget in (1, 10**6))
    assert read(cut) == read(whole)


def test_another_key_deals_otherwise():
    texts = micro_batches(11, 9)
    assert read(deal_texts(texts, 2, "0:0:0", CPU)) != read(deal_texts(texts, 2, "0:0:1", CPU))


def test_none_are_dealt_to_each():
    assert deal_texts([], 3, "key", CPU) == [[], [], []]


def test_what_is_taken_whole_is_not_packed_again():
    texts = micro_batches(5, 10**6)
    assert deal_texts(texts, 1, "key", CPU)[0][0] is texts[0]


def test_the_weight_is_one_over_the_trained_tokens():
    texts = micro_batches(5, 9)
    number = sum(len(text.forest.targets) for text in texts)
    assert float(text_weight(texts, CPU)) == pytest.approx(1 / number)
    assert float(text_weight([], CPU)) == 1.0


def test_pictures_go_where_their_text_goes():
    pictures = [Picture({}, 1, f"{number}") for number in range(8)]
    trees = [[Segment([9, 5, 6], [False, False, True], pictures=(picture,))] for picture in pictures]
    rows = tuple(f"texts:{number}" for number in range(8))
    parts = deal_texts([Instructions(Forest.pack(trees), rows, ("texts",) * 8)], 3, "key", CPU)
    for (text,) in parts:
        assert [f"texts:{picture.digest}" for picture in text.forest.pictures] == list(text.rows)
        assert text.forest.holders == tuple(range(len(text.rows)))
