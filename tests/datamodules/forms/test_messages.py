"""Turns as they are written elsewhere become one kind of message."""

from __future__ import annotations

import pytest

from datamodules.forms.messages import read_turn, read_turns
from datamodules.records import BadRowError


def read(turn, tags=None):
    return read_turn("m[0]", turn, tags or {})


def call(name="f", **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TURNS = [
    ({"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}),
    ({"from": "human", "value": "Hi"}, {"role": "user", "content": "Hi"}),
    ({"from": "gpt", "value": "Hi", "weight": None}, {"role": "assistant", "content": "Hi"}),
    ({"from": "observation", "value": "{}"}, {"role": "tool", "content": "{}"}),
    ({"from": "system", "value": ""}, {"role": "system", "content": ""}),
    ({"role": "developer", "content": "x"}, {"role": "developer", "content": "x"}),
    (
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"role": "assistant", "content": "", "tool_calls": [call(x=1)]},
    ),
    (
        {"from": "function_call", "value": '[{"name": "f"}, {"name": "g", "arguments": "{\\"y\\": 2}"}]'},
        {"role": "assistant", "content": "", "tool_calls": [call(), call("g", y=2)]},
    ),
    (
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **call(), "x": None}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **call()}]},
    ),
    ({"role": "assistant", "content": "x", "tool_calls": []}, {"role": "assistant", "content": "x"}),
    ({"role": "tool", "content": "4", "name": "f"}, {"role": "tool", "content": "4", "name": "f"}),
    (
        {"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"value": "c", "type": "text"}]},
        {"role": "user", "content": "abc"},
    ),
    ({"role": "user", "content": [{"text": "a", "image": None}]}, {"role": "user", "content": "a"}),
    (
        {"role": "user", "content": [{"type": "image"}, {"type": "image_url", "image_url": {"url": "u"}}, "Who?"]},
        {"role": "user", "content": "<image><image>Who?", "pictures": [None, "u"]},
    ),
    (
        {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "4"}]},
        {"role": "assistant", "content": "4", "reasoning_content": "hm"},
    ),
    (
        {"role": "assistant", "content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {}}'}]},
        {"role": "assistant", "content": "", "tool_calls": [call()]},
    ),
    ({"role": "assistant", "content": "x", "weight": 0}, {"role": "assistant", "content": "x", "weight": 0}),
    ({"role": "assistant", "content": "x", "train": False}, {"role": "assistant", "content": "x", "weight": 0}),
    ({"role": "assistant", "content": "x", "loss_weight": 1.0}, {"role": "assistant", "content": "x"}),
    ({"role": "user", "content": "x", "loss_weight": 0.0}, {"role": "user", "content": "x"}),
]


@pytest.mark.parametrize(("turn", "expected"), TURNS)
def test_turn(turn, expected):
    assert read(turn) == expected


def test_tags_name_keys_and_speakers():
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "ME", "assistant_tag": "IT", "function_tag": "DO"}
    tags |= {"observation_tag": "SAW", "system_tag": "RULE"}
    turns = [{"who": who, "said": "x"} for who in ("RULE", "ME", "IT", "SAW")]
    assert [turn["role"] for turn in read_turns("m", turns, tags)] == ["system", "user", "assistant", "tool"]
    assert read({"who": "DO", "said": '{"name": "f"}'}, tags)["tool_calls"] == [call()]
    assert read({"from": "human", "value": "x"}, tags)["role"] == "user"


def test_words_of_a_model_that_are_no_json_are_kept():
    broken = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}
    assert read(broken)["tool_calls"][0]["function"]["arguments"] == "{x"


BAD = [
    ("x", "wrong_type", "m[0] is str 'x'; it must be a message with a 'role'"),
    ({"content": "x"}, "wrong_type", "it must be a message with a 'role'"),
    ({"role": 1, "content": "x"}, "wrong_type", "m[0]['role'] is int"),
    ({"role": "user"}, "wrong_type", "m[0]['content'] is null; it must be text"),
    ({"role": "user", "content": 3}, "wrong_type", "m[0]['content'] is int"),
    ({"role": "user", "content": []}, "wrong_type", "m[0]['content'] is an empty list"),
    ({"role": "user", "content": [3]}, "wrong_type", "m[0]['content'][0] is int"),
    ({"role": "user", "content": [{"type": "text", "text": 3}]}, "wrong_type", "m[0]['content'][0]['text'] is int"),
    (
        {"role": "user", "content": [{"type": "txt", "text": "x"}]},
        "wrong_type",
        "['type'] is str 'txt'; it must be one of",
    ),
    ({"role": "user", "content": [{"type": ["text"]}]}, "wrong_type", "['type'] is list"),
    ({"role": "user", "content": [{"type": "video", "video": "v"}]}, "unsupported_media", "film or a sound"),
    ({"role": "user", "content": [{"type": "audio_url"}]}, "unsupported_media", "film or a sound"),
    ({"role": "user", "content": "\ud800"}, "bad_encoding", "m[0]['content'] has a lone surrogate"),
    ({"role": "\ud800", "content": ""}, "bad_encoding", "m[0]['role'] has a lone surrogate"),
    ({"role": "user", "content": "x", "name": "\ud800"}, "bad_encoding", "m[0] has a lone surrogate"),
    (
        {"from": "humn", "value": "x"},
        "unknown_speaker",
        "is 'humn'; known speakers are assistant, chatgpt, function_call",
    ),
    ({"from": "function_call", "value": "{"}, "wrong_type", "m[0]['value'] is text but not JSON"),
    ({"from": "function_call", "value": "[]"}, "bad_tool_call", "m[0] calls a function without"),
    ({"role": "assistant", "tool_calls": [{"function": {}}]}, "bad_tool_call", "m[0] calls a function without"),
    ({"role": "assistant", "tool_calls": "f()"}, "wrong_type", "m[0]['tool_calls'] is str"),
    (
        {"role": "assistant", "content": "x", "weight": 0.5},
        "wrong_type",
        "m[0]['weight'] is float '0.5'; it must be 0 or 1",
    ),
    ({"role": "assistant", "content": "x", "train": "no"}, "wrong_type", "m[0]['train'] is str 'no'"),
]


@pytest.mark.parametrize(("turn", "reason", "message"), BAD)
def test_bad_turn(turn, reason, message):
    with pytest.raises(BadRowError) as caught:
        read(turn)
    assert caught.value.reason == reason
    assert message in str(caught.value)


def test_no_turns_are_no_conversation():
    for value in ([], "x", None, {}):
        with pytest.raises(BadRowError, match=r"'m' is .*; it must be text or a list of messages"):
            read_turns("m", value)


def test_keys_of_our_own_in_a_turn_say_nothing():
    assert read_turn("m", {"role": "user", "content": "a", "pictures": 3}) == {"role": "user", "content": "a"}
    thoughts = {"role": "assistant", "reasoning_content": 3, "content": [{"type": "thinking", "thinking": "b"}]}
    with pytest.raises(BadRowError, match="'reasoning_content' is int '3'; it must be text"):
        read_turn("m", thoughts)
