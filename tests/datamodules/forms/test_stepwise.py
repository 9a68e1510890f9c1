"""Answers that were judged step by step."""

from __future__ import annotations

import pytest

from datamodules.forms.table import read_row
from datamodules.records import BadRowError, Step

STEPS = {"prompt": "1 + 1 + 1?", "completions": ["1 + 1 is 2.", "2 + 1 is 4."], "labels": [True, False]}


def read(**row):
    (record,) = read_row({**STEPS, **row})
    return record


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ([True, False], (1.0, 0.0)),
        ([1, 0], (1.0, 0.0)),
        ([0.25, None], (0.25, None)),
        (["true", "0.5"], (1.0, 0.5)),
        ([None, None], (None, None)),
    ],
)
def test_steps_and_labels(given, labels):
    record = read(labels=given)
    assert record.form == "stepwise supervision"
    assert record.responses[0].steps == tuple(map(Step, STEPS["completions"], labels))


def test_the_answer_is_of_the_kind_of_the_prompt():
    text = "1 + 1 is 2.\n2 + 1 is 4."
    assert [(one.text, one.rank, one.label) for one in read().responses] == [(text, 0, None)]
    record = read(prompt=[{"role": "user", "content": "1 + 1 + 1?"}])
    assert record.responses[0].text == [{"role": "assistant", "content": text}]
    assert read(prompt=None, question="1 + 1 + 1?").prompt == [{"role": "user", "content": "1 + 1 + 1?"}]


def test_a_step_that_says_nothing_may_go_unjudged():
    assert read(completions=["1", " "], labels=[1, None]).responses[0].steps[1] == Step(" ", None)


def test_answers_with_scores_are_no_steps():
    row = {"prompt": "p", "completions": ["a", "b"], "labels": [1, 0], "scores": [1, 2]}
    assert read_row(row)[0].form == "answers beside scores"
    items = [{"completion": "a", "rank": 0}, {"completion": "b", "rank": 1}]
    assert read_row({**row, "completions": items, "scores": None})[0].form == "ranked answers"
    unranked = [{"completion": "a"}, {"completion": "b"}]
    assert read_row({**row, "completions": unranked, "scores": None})[0].form == "sampled answers"


BAD = [
    ({"labels": [1]}, "wrong_type", "'completions' has 2 steps but 'labels' has 1 labels"),
    ({"labels": [1, 2]}, "wrong_type", "labels[1] is int '2'; it must be from 0 (wrong) to 1 (right)"),
    ({"labels": [-1, 1]}, "wrong_type", "labels[0] is int '-1'"),
    ({"labels": [1, "good"]}, "wrong_type", "labels[1] is str 'good'"),
    ({"labels": [1, float("nan")]}, "wrong_type", "labels[1] is float 'nan'"),
    ({"labels": True}, "wrong_type", "'labels' is bool 'True'; it must be a list of one label for each step"),
    ({"labels": []}, "wrong_type", "'labels' is an empty list"),
    ({"completions": [], "labels": []}, "wrong_type", "'completions' is an empty list"),
    ({"completions": ["a", 3]}, "wrong_type", "completions[1] is int '3'"),
    ({"completions": ["a", "\ud800"]}, "bad_encoding", "completions[1] has a lone surrogate"),
    ({"completions": ["a", " "]}, "empty_step", "completions[1] is empty, but labels[1] judges it"),
    ({"completions": [" ", ""], "labels": [None, None]}, "empty_response", "'completions' has an empty response"),
    ({"prompt": None}, "missing_key", "row has no 'prompt'"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_steps(row, reason, message):
    with pytest.raises(BadRowError) as caught:
        read(**row)
    assert caught.value.reason == reason
    assert message in str(caught.value)
