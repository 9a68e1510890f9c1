"""Every row form, and the message of every bad row."""

from __future__ import annotations

import gzip
import json

import pytest

from datamodules.records import ASSISTANT, BadRowError, read_preference

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind"}


def assistant(text):
    return {"role": "assistant", "content": text}


def dialogue(*turns):
    return "".join(f"\n\n{'Assistant' if number % 2 else 'Human'}: {turn}" for number, turn in enumerate(turns))


FORMS = {
    "explicit": ({"prompt": "a b", "chosen": " c", "rejected": " d"}, ("a b", " c", " d")),
    "explicit, empty prompt": ({"prompt": "", "chosen": "c", "rejected": "d"}, ("", "c", "d")),
    "implicit": ({"chosen": "the fox ran", "rejected": "the fox sat"}, ("the fox", " ran", " sat")),
    "implicit, null prompt": ({"prompt": None, "chosen": "ax", "rejected": "ay"}, ("a", "x", "y")),
    "implicit, one begins the other": ({"chosen": "abc", "rejected": "ab"}, ("a", "bc", "b")),
    "implicit, nothing shared": ({"chosen": "ab ", "rejected": "c"}, ("", "ab ", "c")),
    "HH": (
        {"chosen": dialogue("Hi", "Yes, a"), "rejected": dialogue("Hi", "Yes, b")},
        (dialogue("Hi", "")[:-1], " Yes, a", " Yes, b"),
    ),
    "HH, several turns": (
        {"chosen": dialogue("Hi", "Ho", "He", "a"), "rejected": dialogue("Hi", "Ho", "He", "b")},
        (dialogue("Hi", "Ho", "He", "")[:-1], " a", " b"),
    ),
    "HH, one answer begins the other": (
        {"chosen": dialogue("Hi", "Yes"), "rejected": dialogue("Hi", "Yes, b")},
        (dialogue("Hi", "")[:-1], " Yes", " Yes, b"),
    ),
    "HH, human turns differ": (
        {"chosen": dialogue("Hi", "Ho", "x", "a"), "rejected": dialogue("Hi", "Ho", "y", "b")},
        (dialogue("Hi", "")[:-1], " Ho" + dialogue("x", "a"), " Ho" + dialogue("y", "b")),
    ),
    "strings that only look like HH": (
        {"chosen": "Human: Hi\nAssistant: a", "rejected": "Human: Hi\nAssistant: b"},
        ("Human: Hi\nAssistant:", " a", " b"),
    ),
    "conversation": (
        {"prompt": [USER], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        ([USER], [assistant("a")], [assistant("b")]),
    ),
    "implicit conversation": (
        {"chosen": [SYSTEM, USER, assistant("a")], "rejected": [SYSTEM, USER, assistant("b")]},
        ([SYSTEM, USER], [assistant("a")], [assistant("b")]),
    ),
    "implicit conversation, one begins the other": (
        {"chosen": [USER, assistant("a")], "rejected": [USER, assistant("a"), USER, assistant("b")]},
        ([USER], [assistant("a")], [assistant("a"), USER, assistant("b")]),
    ),
    "text prompt, answers as messages": (
        {"prompt": "Hi", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        ([USER], [assistant("a")], [assistant("b")]),
    ),
    "text prompt repeated in conversations": (
        {"prompt": "Hi", "chosen": [USER, assistant("a")], "rejected": [USER, assistant("b")]},
        ([USER], [assistant("a")], [assistant("b")]),
    ),
    "messages, answers as text": (
        {"prompt": [USER], "chosen": "a", "rejected": "b"},
        ([USER], [assistant("a")], [assistant("b")]),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_form(name):
    row, expected = FORMS[name]
    assert read_preference(row)[:3] == expected


def test_optional_columns():
    row = {"chosen": "ax", "rejected": "ay", "margin": 2, "tools": '[{"name": "f"}]', "chat_template_kwargs": {"x": 1}}
    assert read_preference(row)[3:] == (2.0, [{"name": "f"}], {"x": 1})
    empty = {"chosen": "ax", "rejected": "ay", "margin": None, "tools": None, "chat_template_kwargs": None}
    assert read_preference(empty)[3:] == (0.0, None, {})
    assert read_preference({**row, "tools": [{"name": "g"}]}).tools == [{"name": "g"}]


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
BAD = [
    ({"prompt": "p", "chosen": "a"}, "missing_key", "row has no 'rejected' (keys found: 'prompt', 'chosen')"),
    ({**PAIR, "rejected": None}, "wrong_type", "'rejected' is null; it must be text or a list of messages"),
    ({**PAIR, "rejected": 3}, "wrong_type", "'rejected' is int '3'"),
    ({**PAIR, "rejected": {}}, "wrong_type", "'rejected' is an empty dict"),
    ({**PAIR, "rejected": []}, "wrong_type", "'rejected' is an empty list"),
    ({**PAIR, "prompt": 1.5}, "wrong_type", "'prompt' is float '1.5'"),
    ({**PAIR, "rejected": [USER]}, "wrong_type", "'chosen' is text but 'rejected' is messages"),
    ({**PAIR, "chosen": " \n"}, "empty_response", "'chosen' has an empty response"),
    ({**PAIR, "rejected": ""}, "empty_response", "'rejected' has an empty response"),
    ({**PAIR, "rejected": "a"}, "identical_responses", "'chosen' and 'rejected' are identical"),
    ({"chosen": "", "rejected": "b"}, "empty_response", "'chosen' has an empty response"),
    ({"prompt": "p", "chosen": "a", "rejcted": "b"}, "missing_key", "did you mean 'rejected' by 'rejcted'?"),
    ({"prompt": "p", "completion": "a", "label": True}, "missing_key", "a response with a thumb"),
    ({"conversations": []}, "missing_key", "give the turns before the answers as 'prompt'"),
    ({}, "missing_key", "row has no 'chosen' (keys found: none)"),
    ([1], "wrong_type", "a row is a mapping of keys to values, not list '[1]'"),
    ({**PAIR, "prompt": [{"from": "human", "value": "x"}]}, "wrong_type", "prompt[0] uses 'from' and 'value'"),
    ({**PAIR, "prompt": ["x"]}, "wrong_type", "prompt[0] is str 'x'; a message has a 'role' and a 'content'"),
    ({**PAIR, "prompt": [{"role": "user", "content": None}]}, "wrong_type", "prompt[0]['content'] is null"),
    ({**PAIR, "chosen": "\ud800"}, "bad_encoding", "'chosen' has a lone surrogate at character 0"),
    ({**PAIR, "prompt": [{"role": "user", "content": "\udfff"}]}, "bad_encoding", "prompt[0]['content'] has a lone"),
    ({**PAIR, "margin": "1"}, "wrong_type", "'margin' is str '1'; it must be a finite number"),
    ({**PAIR, "margin": float("nan")}, "wrong_type", "'margin' is float 'nan'"),
    ({**PAIR, "margin": True}, "wrong_type", "'margin' is bool 'True'"),
    ({**PAIR, "tools": "{"}, "wrong_type", "'tools' is text but not JSON"),
    ({**PAIR, "tools": {"a": 1}}, "wrong_type", "'tools' is dict"),
    ({**PAIR, "chat_template_kwargs": {"tokenize": True}}, "wrong_type", "may not set tokenize"),
    ({**PAIR, "chat_template_kwargs": "x"}, "wrong_type", "'chat_template_kwargs' is str 'x'"),
    ({"chosen": [USER, assistant(" ")], "rejected": [USER, assistant("b")]}, "empty_response", "'chosen' has an empty"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_row(row, reason, message):
    with pytest.raises(BadRowError) as caught:
        read_preference(row)
    assert caught.value.reason == reason
    assert message in str(caught.value)


def test_a_tool_call_is_a_response():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert read_preference({"prompt": [USER], "chosen": [call], "rejected": [assistant("b")]}).chosen == [call]


def test_real_dialogues(shared_data):
    reasons, ends = [], set()
    with gzip.open(shared_data / "hh_rlhf_harmless" / "rows_0_1799.jsonl.gz") as lines:
        for line in lines:
            row = json.loads(line)
            try:
                record = read_preference(row)
            except BadRowError as error:
                reasons.append(error.reason)
                continue
            ends.add(record.prompt[-len(ASSISTANT) :])
            assert (record.prompt + record.chosen, record.prompt + record.rejected) == (row["chosen"], row["rejected"])
            assert record.prompt.startswith("\n\nHuman:")
    assert reasons == ["empty_response"] * 4
    assert ends == {ASSISTANT}
