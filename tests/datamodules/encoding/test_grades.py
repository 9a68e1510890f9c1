"""Grades: where they are looked up, in which order, and what is no grade."""

from __future__ import annotations

import math

import pytest

from datamodules.encoding.grades import grades_of
from datamodules.forms import read_row
from datamodules.records import BadRowError

ONE = {"prompt": "Who?", "response": " Me."}
PAIR = {"prompt": "Who?", "chosen": " Me.", "rejected": " You."}
UNKNOWN = math.nan


def grades(row, *objectives):
    (record,) = read_row(row)
    return [[None if math.isnan(grade) else grade for grade in each] for each in grades_of(record, objectives)]


def test_columns_of_one_answer():
    row = {**ONE, "helpfulness": 3, "verbosity": "1.5", "safe": True, "coherence": None, "style": [2]}
    names = ("helpfulness", "verbosity", "safe", "coherence", "style", "score")
    assert grades(row, *names) == [[3.0, 1.5, 1.0, None, 2.0, None]]


def test_a_column_of_several_answers_is_in_the_order_of_the_row():
    row = {"prompt": "Who?", "responses": [" a", " b", " c"], "scores": [1, 3, 2], "style": [10, 30, None]}
    assert grades(row, "score", "style") == [[3.0, 30.0], [2.0, None], [1.0, 10.0]]
    better_last = {"prompt": "Who?", "response_0": "a", "response_1": "b", "better_response_id": 1, "safe": [0, 1]}
    assert grades(better_last, "safe") == [[1.0], [0.0]]
    assert grades({**PAIR, "score": [5, 4]}, "score") == [[5.0], [4.0]]


def test_what_an_item_says_comes_before_a_column():
    items = [{"response": "a", "overall_score": 4, "style": 1}, {"response": "b", "overall_score": 5, "style": None}]
    row = {"instruction": "Who?", "completions": items}
    assert grades(row, "score", "overall_score", "style") == [[5.0, 5.0, None], [4.0, 4.0, 1.0]]
    assert grades({**row, "style": [7, 8]}, "style") == [[8.0], [1.0]]
    own = [{"completion": "a", "rank": 0, "score": 0}, {"completion": "b", "rank": 1}]
    assert grades({"prompt": "Who?", "completions": own, "score": [8, 9]}, "score") == [[0.0], [9.0]]


def test_a_dot_leads_into_a_mapping():
    items = [
        {"response": "a", "overall_score": 4, "annotations": {"style": {"Rating": "5"}}},
        {"response": "b", "overall_score": 3, "annotations": {"style": None}},
    ]
    assert grades({"prompt": "Who?", "completions": items}, "annotations.style.Rating") == [[5.0], [None]]
    assert grades({**ONE, "annotations": {"style": 2}, "style.x": 3}, "annotations.style", "style.x") == [[2.0, 3.0]]


def test_a_score_beside_one_side_of_a_pair_alone():
    assert grades({**PAIR, "chosen_score": 4}, "score") == [[4.0], [None]]


def test_a_thumb_is_no_grade_unless_it_is_named():
    row = {"prompt": "Who?", "completion": " Me.", "label": False}
    assert grades(row, "score", "label") == [[None, 0.0]]
    assert grades({**row, "score": 7}, "score") == [[7.0]]


def test_no_objectives_no_grades():
    assert grades({**PAIR, "score": "anything"}) == [[], []]


BAD = [
    ({**ONE, "style": "good"}, "style[0] is str 'good'; it must be a finite number"),
    ({**ONE, "style": float("inf")}, "style[0] is float 'inf'"),
    ({**ONE, "style": {"a": 1}}, "style[0] is dict"),
    ({**ONE, "style": [1, 2]}, "'style' is list '[1, 2]'; it must be a list of one number for each of the 1 answers"),
    ({**PAIR, "style": 3}, "'style' is int '3'; it must be a list of one number for each of the 2 answers"),
    ({**PAIR, "style": [1]}, "'style' is list '[1]'"),
    ({**PAIR, "style": [1, "x"]}, "style[1] is str 'x'"),
    (
        {"prompt": "Who?", "completions": [{"text": "a", "style": "N/A"}, {"text": "b"}]},
        "'style' of answer 0 is str 'N/A'; it must be a finite number",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_grades(row, message):
    with pytest.raises(BadRowError) as caught:
        grades(row, "style")
    assert caught.value.reason == "wrong_type"
    assert message in str(caught.value)
