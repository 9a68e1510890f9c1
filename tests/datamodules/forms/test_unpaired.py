"""Thumbs."""

from __future__ import annotations

import pytest

from datamodules.forms.table import read_row
from datamodules.records import BadRowError, Response


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TALK = [user("x"), assistant("y")]


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize(("thumb", "is_up"), [(True, True), (False, False), (1, True), (0, False), ("false", False)])
def test_thumbs(name, thumb, is_up):
    assert read_row({"prompt": "p", "completion": "c", name: thumb})[0].responses == (
        Response("c", 1 - is_up, None, is_up),
    )
    (record,) = read_row({"conversations": TALK, name: thumb})
    assert (record.prompt, record.responses) == (TALK[:1], (Response(TALK[1:], 1 - is_up, None, is_up),))
    (record,) = read_row({"instruction": "i", "output": "o", name: thumb})
    assert (record.form, record.responses[0].label) == ("answer with a thumb", is_up)


def test_a_label_may_mean_something_else():
    assert read_row({"question": "q", "answer": "a", "label": "algebra"})[0].form == "question and answer"
    assert read_row({"messages": TALK, "label": 7})[0].form == "OpenAI conversation"
    (record,) = read_row({"prompt": "p", "label": "42"})
    assert (record.form, record.columns) == ("prompt alone", {"label": "42"})


def test_a_conversation_that_ends_in_a_question_has_nothing_to_judge():
    (record,) = read_row({"messages": TALK[:1], "label": "1"})
    assert (record.prompt, record.responses, record.columns) == (TALK[:1], (), {"label": "1"})


def test_graded_answers_come_right_before_wrong_and_keep_their_number():
    grades = {f"model {number}": {"is_correct": number % 2, "solution": "same"} for number in range(4)}
    (record,) = read_row({"question": "q", **grades, "ground_truth": "2"})
    assert [(one.label, one.rank) for one in record.responses] == [(True, 0), (True, 0), (False, 1), (False, 1)]
    assert record.columns["ground_truth"] == "2"


def test_a_false_statement():
    (record,) = read_row({"sentence": "s", "label": "false", "image": "a.png"})
    assert record.prompt == [user("<image>True or false: s")]
    assert [one.text for one in record.responses] == [[assistant("false")], [assistant("true")]]


def test_a_statement_after_other_turns():
    (record,) = read_row({"sentence": [user("a"), assistant("b"), user("s")], "label": True})
    assert record.prompt == [user("a"), assistant("b"), user("True or false: s")]


BAD = [
    ({"prompt": "p", "completion": "c", "label": "maybe"}, "'label' is str 'maybe'; it must be true or false"),
    ({"prompt": "p", "response": "c", "kto_tag": 2}, "'kto_tag' is int '2'"),
    ({"messages": TALK, "kto_tag": "up"}, "'kto_tag' is str 'up'"),
    ({"question": "q", "m": {"is_correct": "x", "solution": "s"}}, "m['is_correct'] is str 'x'"),
    ({"question": "q", "m": {"is_correct": True, "solution": None}}, "m['solution'] is null"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_thumb(row, message):
    with pytest.raises(BadRowError) as caught:
        read_row(row)
    assert caught.value.reason == "wrong_type"
    assert message in str(caught.value)
