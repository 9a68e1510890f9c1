"""A better and a worse answer; what each form reads is in test_table.py."""

from __future__ import annotations

import pytest

from datamodules.forms.table import read_row
from datamodules.records import BadRowError, Response


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def responses(**row):
    (record,) = read_row(row)
    return record.responses


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
TALK = {"messages": [user("x"), assistant("y")]}


def test_the_better_answer_comes_first():
    assert responses(**PAIR) == (Response("a", 0), Response("b", 1, number=1))


@pytest.mark.parametrize(
    ("better", "worse"),
    [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")],
)
def test_scores_beside_the_answers(better, worse):
    assert [one.score for one in responses(**PAIR, **{better: 5, worse: "2.5"})] == [5.0, 2.5]
    with pytest.raises(BadRowError, match=f"'{worse}' is str 'x'"):
        read_row({**PAIR, worse: "x"})


def test_hh_is_told_from_other_texts():
    def form(chosen, rejected):
        return read_row({"chosen": chosen, "rejected": rejected})[0].form

    assert form("\n\nHuman: x\n\nAssistant: a", "\n\nHuman: x\n\nAssistant: b") == "Anthropic HH dialogue"
    assert form("Human: x\nAssistant: a", "Human: x\nAssistant: b") == "TRL preference, implicit"


def test_rejected_response_may_be_one_text_several_or_a_turn():
    worse = [Response([assistant("z")], 1, number=1)]
    assert responses(**TALK, rejected_response="z")[1:] == (*worse,)
    assert responses(**TALK, rejected_response=assistant("z"))[1:] == (*worse,)
    assert responses(**TALK, rejected_response=["z", "z2"])[1:] == (*worse, Response([assistant("z2")], 1, number=2))


@pytest.mark.parametrize(
    "row",
    [
        {**PAIR, "rejected": "a"},
        {"chosen": "ab", "rejected": "ab"},
        {**TALK, "rejected_response": "y"},
        {**TALK, "rejected_messages": TALK["messages"]},
    ],
)
def test_what_says_the_same_is_read(row):
    """Whether that is of use is for those to say who compare."""
    better, worse = responses(**row)
    assert (better.text, better.rank, worse.rank) == (worse.text, 0, 1)


def test_rejected_messages_may_be_whole_or_the_end():
    longer = [user("x"), assistant("z"), user("more"), assistant("z2")]
    for rejected in (longer, longer[1:]):
        assert [one.text for one in responses(**TALK, rejected_messages=rejected)] == [[assistant("y")], longer[1:]]


BAD = [
    ({**PAIR, "rejected": 3}, "wrong_type", "'rejected' is int '3'; it must be text or a list of messages"),
    ({**PAIR, "rejected": {}}, "wrong_type", "'rejected' is an empty dict"),
    ({**PAIR, "rejected": []}, "wrong_type", "'rejected' is an empty list"),
    ({**PAIR, "rejected": [user("x")]}, "wrong_type", "'chosen' is text but 'rejected' is messages"),
    ({**PAIR, "chosen": " \n"}, "empty_response", "'chosen' has an empty response"),
    ({**PAIR, "rejected": ""}, "empty_response", "'rejected' has an empty response"),
    ({"chosen": "", "rejected": "b"}, "empty_response", "'chosen' has an empty response"),
    ({**PAIR, "chosen": "\ud800"}, "bad_encoding", "'chosen' has a lone surrogate at character 0"),
    (
        {"chosen": [user("x"), assistant(" ")], "rejected": [user("x"), assistant("b")]},
        "empty_response",
        "'chosen' has",
    ),
    ({**TALK, "rejected_response": ["z", ""]}, "empty_response", "rejected_response[1] has an empty response"),
    ({**TALK, "rejected_response": [3]}, "wrong_type", "'rejected_response[0]' is int '3'; it must be text or"),
    ({"messages": [user("x")], "rejected_response": "y"}, "missing_response", "must end in an assistant turn"),
    ({**TALK, "rejected_messages": "z"}, "wrong_type", "'rejected_messages' is str 'z'"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_pair(row, reason, message):
    with pytest.raises(BadRowError) as caught:
        read_row(row)
    assert caught.value.reason == reason
    assert message in str(caught.value)


def test_a_call_is_a_response():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    (record,) = read_row({"prompt": [user("x")], "chosen": [call], "rejected": [assistant("b")]})
    assert record.responses[0].text[0]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {}}}
    ]
