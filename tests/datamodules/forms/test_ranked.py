"""Rankings of any number of answers."""

from __future__ import annotations

import pytest

from datamodules.forms.table import read_row
from datamodules.records import BadRowError


def read(**row):
    (record,) = read_row({"prompt": "p", **row})
    return [(one.text, one.rank, one.score) for one in record.responses]


def forms(**row):
    return [record.form for record in read_row({"prompt": "p", **row})]


def test_ranks_need_not_begin_at_zero_and_may_be_shared():
    answers = [{"answer": "c", "rank": 9}, {"answer": "a", "rank": 2}, {"answer": "b", "rank": "2"}]
    assert read(answers=answers) == [("a", 0, None), ("b", 0, None), ("c", 1, None)]


def test_scores_give_ranks_and_stay():
    completions = [{"text": "b", "score": 1}, {"text": "a", "score": "1.5"}, {"text": "c", "score": 1}]
    assert read(completions=completions) == [("a", 0, 1.5), ("b", 1, 1.0), ("c", 1, 1.0)]
    assert read(responses=["b", "a"], rewards=[-1, 0]) == [("a", 0, 0.0), ("b", 1, -1.0)]


def test_an_answer_given_twice_stays_to_be_counted():
    assert read(responses=["a", "b", "a"], scores=[1, 2, 3]) == [("a", 0, 3.0), ("b", 1, 2.0), ("a", 2, 1.0)]


def test_one_answer_alone_is_read():
    assert read(completions=[{"completion": "a", "rank": 1}]) == [("a", 0, None)]


def test_what_is_said_of_each_answer_stays_with_it():
    items = [{"text": "b", "score": 1, "style": 3}, {"text": "a", "score": 2, "style": None}]
    (record,) = read_row({"prompt": "p", "completions": items})
    assert [(one.text, one.number, one.columns) for one in record.responses] == [("a", 1, items[1]), ("b", 0, items[0])]


def test_answers_of_which_none_is_better_are_of_one_rank():
    assert read(responses=["b", "a"]) == [("b", 0, None), ("a", 0, None)]
    assert read(completions=[{"text": "b", "style": 3}, {"text": "a"}]) == [("b", 0, None), ("a", 0, None)]
    assert read(generations=["b"], helpfulness=[2]) == [("b", 0, None)]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"answers": ["2", "two"]}, "prompt alone"),  # all of them right, as far as anyone knows
        ({"responses": "b"}, "prompt alone"),
        ({"responses": ["a"], "rating": 3}, "prompt alone"),
        ({"responses": ["a"], "response": "b"}, "prompt and completion"),
        ({"responses": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "prompt alone"),
        ({"responses": ["a"], "messages": [{"role": "user", "content": "a"}]}, "OpenAI conversation"),
    ],
)
def test_a_list_that_may_mean_something_else_is_no_list_of_answers(row, form):
    assert forms(**row) == [form]


BAD = [
    (
        {"completions": [{"rank": 0, "completion": "a"}, {"rank": None, "completion": "b"}]},
        "wrong_type",
        "completions[1]['rank'] is null",
    ),
    ({"completions": [{"rank": 0}]}, "wrong_type", "completions[0] is dict"),
    (
        {"completions": [{"rank": 0, "completion": "a"}, 3]},
        "wrong_type",
        "completions[1] is int '3'; it must be an answer under",
    ),
    ({"completions": [{"rank": 0, "completion": " "}]}, "empty_response", "completions[0] has an empty response"),
    (
        {"completions": [{"score": 0, "text": "a"}, {"score": "high", "text": "b"}]},
        "wrong_type",
        "completions[1]['score'] is str",
    ),
    ({"responses": ["a", "b"], "scores": [1]}, "wrong_type", "one number for each of the 2 responses"),
    ({"responses": ["a", 3], "scores": [1, 2]}, "wrong_type", "'responses[1]' is int '3'"),
    ({"responses": ["a", "b"], "scores": [1, "x"]}, "wrong_type", "scores[1] is str 'x'"),
    ({"completions": [], "scores": []}, "wrong_type", "'completions' is an empty list"),
    ({"completions": []}, "wrong_type", "'completions' is an empty list"),
    ({"completions": [{"text": "a"}, {"text": "b", "rank": 1}]}, "unknown_form", "needs answers {completion, rank}"),
    ({"completions": [{"text": "a"}, {"text": "b", "score": 1}]}, "unknown_form", "needs answers {completion, rank}"),
    ({"completions": [{"text": "a"}, "b"]}, "wrong_type", "completions[1] is str 'b'; it must be an answer under"),
    ({"completions": ["a", {"text": "b"}]}, "wrong_type", "completions[1][0] is dict"),
    ({"generations": ["a", ""]}, "empty_response", "generations[1] has an empty response"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_ranking(row, reason, message):
    with pytest.raises(BadRowError) as caught:
        read(**row)
    assert caught.value.reason == reason
    assert message in str(caught.value)
