"""Where the prompt ends, for every pair of kinds."""

from __future__ import annotations

import pytest

from datamodules.forms.splitting import is_empty, part
from datamodules.records import BadRowError

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind"}


def assistant(text):
    return {"role": "assistant", "content": text}


def dialogue(*turns):
    return "".join(f"\n\n{'Assistant' if number % 2 else 'Human'}: {turn}" for number, turn in enumerate(turns))


A, B = assistant("a"), assistant("b")
WAYS = {
    "explicit": ("a b", [" c", " d"], ("a b", [" c", " d"])),
    "explicit, empty prompt": ("", ["c", "d"], ("", ["c", "d"])),
    "implicit": (None, ["the fox ran", "the fox sat"], ("the fox", [" ran", " sat"])),
    "implicit, several": (None, ["the fox ran", "the fox sat", "the fig"], ("the f", ["ox ran", "ox sat", "ig"])),
    "implicit, one begins the other": (None, ["abc", "ab"], ("a", ["bc", "b"])),
    "implicit, nothing shared": (None, ["ab ", "c"], ("", ["ab ", "c"])),
    "HH": (
        None,
        [dialogue("Hi", "Yes, a"), dialogue("Hi", "Yes, b")],
        (dialogue("Hi", "")[:-1], [" Yes, a", " Yes, b"]),
    ),
    "HH, several turns": (
        None,
        [dialogue("Hi", "Ho", "He", "a"), dialogue("Hi", "Ho", "He", "b")],
        (dialogue("Hi", "Ho", "He", "")[:-1], [" a", " b"]),
    ),
    "HH, one answer begins the other": (
        None,
        [dialogue("Hi", "Yes"), dialogue("Hi", "Yes, b")],
        (dialogue("Hi", "")[:-1], [" Yes", " Yes, b"]),
    ),
    "HH, human turns differ": (
        None,
        [dialogue("Hi", "Ho", "x", "a"), dialogue("Hi", "Ho", "y", "b")],
        (dialogue("Hi", "")[:-1], [" Ho" + dialogue("x", "a"), " Ho" + dialogue("y", "b")]),
    ),
    "strings that only look like HH": (
        None,
        ["Human: Hi\nAssistant: a", "Human: Hi\nAssistant: b"],
        ("Human: Hi\nAssistant:", [" a", " b"]),
    ),
    "conversation": ([USER], [[A], [B]], ([USER], [[A], [B]])),
    "conversation repeated in the answers": ([USER], [[USER, A], [USER, B]], ([USER], [[A], [B]])),
    "whole chosen conversation as the prompt": ([USER, A], [[USER, A], [USER, B]], ([USER], [[A], [B]])),
    "implicit conversation": (None, [[SYSTEM, USER, A], [SYSTEM, USER, B]], ([SYSTEM, USER], [[A], [B]])),
    "implicit conversation, one begins the other": (
        None,
        [[USER, A], [USER, A, USER, B]],
        ([USER], [[A], [A, USER, B]]),
    ),
    "text prompt, answers as messages": ("Hi", [[A], [B]], ([USER], [[A], [B]])),
    "text prompt repeated in conversations": ("Hi", [[USER, A], [USER, B]], ([USER], [[A], [B]])),
    "messages, answers as text": ([USER], ["a", "b"], ([USER], [[A], [B]])),
    "no messages, answers as text": ([], ["a", "b"], ([], [[A], [B]])),
}


@pytest.mark.parametrize("name", WAYS)
def test_way(name):
    prompt, answers, expected = WAYS[name]
    assert part(prompt, [f"answer {number}" for number in range(len(answers))], answers) == expected


def test_answers_of_two_kinds_are_refused():
    with pytest.raises(BadRowError, match="'a' is text but 'b' is messages; both must be of one kind") as caught:
        part("p", ("'a'", "'b'"), ["x", [A]])
    assert caught.value.reason == "wrong_type"


def test_empty_answers_are_refused_by_their_place():
    for answers, place in ((["x", " \n"], "'b'"), ([[assistant(" ")], [B]], "'a'")):
        with pytest.raises(BadRowError, match=f"{place} has an empty response") as caught:
            part("p", ("'a'", "'b'"), answers)
        assert caught.value.reason == "empty_response"


def test_a_call_is_not_empty():
    assert not is_empty([{"role": "assistant", "content": "", "tool_calls": [1]}])
    assert is_empty([{"role": "assistant", "content": " "}])
