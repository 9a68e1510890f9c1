"""Prompts are read from the columns that hold them."""

from __future__ import annotations

import pytest

from datamodules.forms.fields import Fields
from datamodules.forms.prompts import answered, before_answer, read_prompt, with_system
from datamodules.records import BadRowError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PROMPTS = [
    ({"prompt": "p"}, "p"),
    ({"prompt": ""}, ""),
    ({"prompt": []}, []),
    ({"prompt": "p", "system": ""}, "p"),
    ({"prompt": "p", "system": "s"}, [user("p")]),
    ({"prompt": "p", "history": []}, "p"),
    ({"prompt": "p", "history": [["a", "b"]]}, [user("a"), assistant("b"), user("p")]),
    ({"question": "q", "history": [user("a"), assistant("b")]}, [user("a"), assistant("b"), user("q")]),
    ({"prompt": [user("p")]}, [user("p")]),
    ({"prompt": {"from": "human", "value": "p"}}, [user("p")]),
    ({"instruction": "i", "input": ""}, [user("i")]),
    ({"instruction": "i", "input": "x"}, [user("i\nx")]),
    ({"instruction": "i", "context": "x"}, [user("i\nx")]),
    ({"instruction": "", "input": "x"}, [user("x")]),
    ({"question": "q", "input": "not read"}, [user("q")]),
    ({"history": "an earlier post"}, [user("an earlier post")]),
    ({"messages": [user("a")]}, [user("a")]),
]


@pytest.mark.parametrize(("row", "prompt"), PROMPTS)
def test_prompt(row, prompt):
    assert read_prompt(Fields(row), next(iter(row))) == prompt


BAD = [
    ({"prompt": 1.5}, "'prompt' is float '1.5'; it must be text or a list of messages"),
    ({"prompt": {}}, "'prompt' is an empty dict"),
    ({"prompt": ["x"]}, "prompt[0] is str 'x'; it must be a message with a 'role' and a 'content'"),
    ({"prompt": "\ud800"}, "'prompt' has a lone surrogate"),
    ({"messages": "x"}, "'messages' is str 'x'; it must be text or a list of messages"),
    ({"question": "q", "history": "x"}, "'history' is str 'x'; it must be a list of [user, assistant] pairs"),
    ({"question": "q", "history": [["a"]]}, "history[0] is list \"['a']\"; it must be a pair"),
    ({"question": "q", "history": [["a", None]]}, "history[0][1] is null; it must be text"),
    ({"instruction": "i", "input": 3}, "'input' is int '3'"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_prompt(row, message):
    with pytest.raises(BadRowError) as caught:
        read_prompt(Fields(row), next(iter(row)))
    assert message in str(caught.value)


def test_a_system_column_comes_before_a_conversation_that_has_none():
    fields = Fields({"system": "s"})
    system = {"role": "system", "content": "s"}
    assert with_system(fields, [user("x")]) == [system, user("x")]
    own = [{"role": "system", "content": "own"}, user("x")]
    assert with_system(fields, own) == own
    assert with_system(fields, "text") == "text"
    assert with_system(fields, [1, 2]) == [1, 2]
    assert with_system(Fields({"system": ""}), [user("x")]) == [user("x")]
    with pytest.raises(BadRowError, match="'system' is int"):
        with_system(Fields({"system": 3}), [user("x")])


def test_the_answer_is_all_that_the_assistant_says_at_the_end():
    turns = [user("a"), assistant("b"), user("c"), assistant("d"), assistant("e")]
    assert before_answer(turns) == answered(turns) == (turns[:3], turns[3:])
    assert before_answer(turns[:3]) == (turns[:3], [])
    with pytest.raises(BadRowError, match="must end in an assistant turn") as caught:
        answered(turns[:3])
    assert caught.value.reason == "missing_response"
    with pytest.raises(BadRowError, match="the last assistant turn is empty") as caught:
        answered([user("a"), assistant(" ")])
    assert caught.value.reason == "empty_response"
