"""Rows of token ids."""

from __future__ import annotations

import pytest

from datamodules.forms.table import read_row
from datamodules.records import BadRowError


def read(**row):
    return [
        (one.prompt, [response.text for response in one.responses], one.columns.get("trained_mask"))
        for one in read_row(row)
    ]


def test_pairs_in_every_writing():
    expected = [([1, 2], [[3], [4, 5]], None)]
    assert read(prompt_ids=[1, 2], chosen_ids=[3], rejected_ids=[4, 5]) == expected
    assert read(prompt_input_ids=[1, 2], chosen_input_ids=[1, 2, 3], rejected_input_ids=[1, 2, 4, 5]) == expected
    assert read(chosen_ids=[1, 2, 3], rejected_ids=[1, 2, 4, 5], prompt="p", chosen="a", rejected="b") == expected
    assert read(prompt_ids=[], chosen_ids=[3], rejected_ids=[3, 5]) == [([], [[3], [3, 5]], None)]
    assert read(chosen_ids=[1, 2], rejected_ids=[1, 2, 3]) == [([1], [[2], [2, 3]], None)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, ([], [[5, 6, 7, 8]], None)),
        ({"completion_mask": [0, 0, 1, 1]}, ([5, 6], [[7, 8]], None)),
        ({"assistant_masks": [0, 1, 0, 1]}, ([5], [[6, 7, 8]], [True, False, True])),
        ({"labels": [-100, 6, 7, -100]}, ([5], [[6, 7]], None)),
        ({"labels": [-100, 6, 7, 8], "completion_mask": [False, False, True, True]}, ([5, 6], [[7, 8]], None)),
        ({"attention_mask": [0, 1, 1, 1]}, ([], [[6, 7, 8]], None)),
        ({"attention_mask": [1, 1, 1, 0], "labels": [-100, 6, 7, -100]}, ([5], [[6, 7]], None)),
    ],
)
def test_sequences(columns, expected):
    assert read(input_ids=[5, 6, 7, 8], **columns) == [expected]


def test_packed_rows_are_cut():
    row = {"input_ids": [1, 2, 3, 4, 5], "completion_mask": [0, 1, 0, 0, 1], "seq_lengths": [2, 3]}
    assert read(**row) == [([1], [[2]], None), ([3, 4], [[5]], None)]


def test_a_prompt_in_tokens():
    assert read(prompt_input_ids=[1, 2]) == [([1, 2], [], None)]


IDS = {"input_ids": [5, 6]}
BAD = [
    ({"input_ids": []}, "wrong_type", "'input_ids' is an empty list"),
    ({"input_ids": "5 6"}, "wrong_type", "'input_ids' is str '5 6'; it must be a list of token ids"),
    ({"input_ids": [5, True]}, "wrong_type", "input_ids[1] is bool 'True'; it must be a token id"),
    ({"input_ids": [5, -1]}, "wrong_type", "input_ids[1] is int '-1'"),
    ({"input_ids": [5, 6.0]}, "wrong_type", "input_ids[1] is float '6.0'"),
    ({**IDS, "labels": [-100]}, "wrong_type", "one number for each of the 2 tokens, not 1"),
    (
        {**IDS, "labels": [6, -100]},
        "wrong_type",
        "labels[0] is int '6'; it must be the token 5 itself, not the next one",
    ),
    ({**IDS, "labels": [-100, -100]}, "empty_response", "no token of the sequence is trained"),
    ({**IDS, "completion_mask": [0, 2]}, "wrong_type", "completion_mask[1] is int '2'; it must be 0 or 1"),
    ({**IDS, "attention_mask": [0, 0]}, "empty_response", "no token of the sequence is trained"),
    ({**IDS, "seq_lengths": [1, 2]}, "wrong_type", "lengths that add up to the 2 tokens"),
    ({**IDS, "seq_lengths": [0, 2]}, "wrong_type", "seq_lengths[0] is int '0'; it must be a length"),
    ({"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [1, 2]}, "empty_response", "'chosen_ids' has an empty"),
    ({"prompt_ids": [1], "chosen_ids": [2]}, "missing_key", "row has no 'rejected_ids'"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_tokens(row, reason, message):
    with pytest.raises(BadRowError) as caught:
        read(**row)
    assert caught.value.reason == reason
    assert message in str(caught.value)
