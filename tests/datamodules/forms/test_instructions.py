"""Instructions, conversations, texts and prompts."""

from __future__ import annotations

import itertools

import pytest

from datamodules.forms.prompts import QUESTIONS
from datamodules.forms.table import read_row
from datamodules.records import BadRowError, Response


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("name", ["completion", "response", "output", "answer", "solution"])
def test_names_of_the_answer(name):
    assert read_row({"prompt": "p", name: "a"})[0].responses == (Response("a"),)
    for question in ("instruction", *QUESTIONS):
        (record,) = read_row({question: "q", name: "a"})
        assert (record.prompt, record.responses) == ([user("q")], (Response([assistant("a")]),))


def test_a_number_to_compare_with_is_no_answer():
    for prompt, name in itertools.product(("prompt", "question", "instruction"), ("answer", "solution")):
        (record,) = read_row({prompt: "q", name: 42})
        assert (record.responses, record.columns) == ((), {name: 42})


def test_a_worked_solution_comes_before_its_last_line():
    (record,) = read_row({"problem": "q", "answer": "4", "solution": "2 + 2 = 4"})
    assert record.responses == (Response([assistant("2 + 2 = 4")]),)


def test_dolly():
    row = {"instruction": "i", "context": "c", "response": "r", "category": "qa"}
    assert read_row(row)[0].prompt == [user("i\nc")]


def test_a_conversation_with_its_tools_and_its_untrained_turns():
    turns = [user("a"), {**assistant("b"), "weight": 0}, user("c"), assistant("d")]
    (record,) = read_row({"messages": turns, "tools": '[{"name": "f"}]', "system": "s", "text": "rendered"})
    assert record.prompt == [{"role": "system", "content": "s"}, *turns[:3]]
    assert (record.responses, record.tools) == ((Response([assistant("d")]),), [{"name": "f"}])


def test_a_conversation_that_ends_in_a_question_is_a_prompt():
    turns = [user("a"), assistant("b"), user("c")]
    (record,) = read_row({"messages": turns})
    assert (record.prompt, record.responses) == (turns, ())


def test_every_instance_is_an_example():
    instances = [{"input": "", "output": "o"}, {"output": "o2"}, {"input": "x", "output": "o3"}]
    records = read_row({"instruction": "i", "instances": instances, "id": "7"})
    assert [record.prompt[0]["content"] for record in records] == ["i", "i", "i\nx"]
    assert [record.responses[0].text[0]["content"] for record in records] == ["o", "o2", "o3"]
    assert all(record.columns["id"] == "7" for record in records)


BAD = [
    ({"prompt": "p", "completion": 3}, "wrong_type", "'completion' is int '3'; it must be text or a list of messages"),
    ({"prompt": "p", "completion": ""}, "empty_response", "'completion' has an empty response"),
    ({"messages": [user("a"), assistant("")]}, "empty_response", "the last assistant turn is empty"),
    ({"messages": []}, "wrong_type", "'messages' is an empty list"),
    ({"instruction": "i", "instances": []}, "wrong_type", "'instances' is an empty list"),
    ({"instruction": "i", "instances": ["x"]}, "wrong_type", "instances[0] is str 'x'"),
    ({"instruction": "i", "instances": [{"input": 3, "output": "o"}]}, "wrong_type", "instances[0]['input'] is int"),
    ({"instruction": "i", "instances": [{"input": "x"}]}, "wrong_type", "instances[0]['output'] is null"),
    ({"instruction": "i", "instances": [{"output": " "}]}, "empty_response", "instances[0]['output'] has an empty"),
    ({"text": " "}, "empty_response", "'text' is empty"),
    ({"text": 3}, "wrong_type", "'text' is int '3'; it must be text"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_instruction(row, reason, message):
    with pytest.raises(BadRowError) as caught:
        read_row(row)
    assert caught.value.reason == reason
    assert message in str(caught.value)
