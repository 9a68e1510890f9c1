"""Requests: what is taken, and that a refusal names the item, the key and the nearest one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from datamodules.forms import read_row
from lit_rlhf.commands.serving.requests import RequestError
from lit_rlhf.commands.serving.scores.schema import SCHEMA, read_request

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
ITEM = {"prompt": "a", "response": " b"}


def read(asked, max_items=4):
    return read_request(asked if isinstance(asked, bytes) else json.dumps(asked).encode(), max_items)


@pytest.mark.parametrize(
    ("item", "prompt", "response"),
    [
        (ITEM, "a", " b"),
        ({"prompt": "", "response": " b"}, "", " b"),
        ({"messages": CHAT}, CHAT[:1], CHAT[1:]),
        ({"prompt": CHAT[:1], "response": CHAT[1:]}, CHAT[:1], CHAT[1:]),
        ({"prompt": CHAT[:1], "response": "Hello."}, CHAT[:1], CHAT[1:]),
        ({"prompt": "Hi", "response": CHAT[1:]}, CHAT[:1], CHAT[1:]),
        ({"prompt_ids": [1, 5], "response_ids": [6, 2]}, [1, 5], [6, 2]),
    ],
)
def test_an_item_is_a_row_of_a_file(item, prompt, response):
    for asked, is_single in (({"items": [item]}, False), (item, True)):
        request = read(asked)
        (record,) = read_row(request.rows[0].decode())
        assert (record.prompt, [one.text for one in record.responses]) == (prompt, [response])
        assert (request.is_single, request.normalise, len(request.rows)) == (is_single, False, 1)


def test_several_items_keep_their_order_and_know_their_places():
    request = read({"items": [ITEM, {"prompt": "c", "response": "d"}], "normalise": True})
    assert [row.address for row in request.rows] == ["items[0]", "items[1]"]
    assert [row.decode()["prompt"] for row in request.rows] == ["a", "c"]
    assert request.normalise
    assert read({"items": []}).rows == []


@pytest.mark.parametrize(
    ("asked", "item", "words"),
    [
        (b"{", None, ["not JSON", "line 1, column 2"]),
        (b"\xff", None, ["not UTF-8 (byte 0)"]),
        (b'{"prompt": NaN, "response": "a"}', None, ["NaN is no number"]),
        (b"[" * 100_000, None, ["nested too deeply"]),
        (b'{"items": [1' + b"0" * 5000 + b"]}", None, ["not JSON"]),
        ([], None, ["the request is []", "must be an object"]),
        (3, None, ["the request is 3"]),
        ({}, None, ["the request has nothing", "'prompt' and 'response', or 'messages'"]),
        ({**ITEM, "normalise": "yes"}, None, ["'normalise' is a text", "true or false"]),
        ({"items": {}}, None, ["'items' is an object", "must be a list"]),
        ({"items": [ITEM], "normalize": True}, None, ["unknown key 'normalize'", "did you mean 'normalise'?"]),
        ({"item": [ITEM]}, None, ["unknown key 'item'", "did you mean 'items'?"]),
        (
            {"items": [ITEM, {"prompt": "a", "resp": "b"}]},
            1,
            ["items[1]", "'resp'", "did you mean 'response'?"],
        ),
        ({"items": [{**ITEM, "xyz": 1}]}, 0, ["'xyz'", "keys are prompt, response, messages"]),
        ({"items": [ITEM, ITEM, "a"]}, 2, ["items[2] is a text", "must be an object"]),
        ({"items": [{**ITEM, "messages": CHAT}]}, 0, ["'prompt', 'response', 'messages'", "it must have"]),
        ({"items": [{"prompt": "a"}]}, 0, ["items[0] has 'prompt'"]),
        ({"items": [{"prompt": None, "response": "b"}]}, 0, ["'prompt' of items[0] is null", "a text or a list"]),
        ({"prompt": "a", "response": []}, None, ["'response' of the request is []"]),
        ({"prompt": "a", "response": ["b"]}, None, ["'response' of the request is a list of something else"]),
        ({"messages": "a"}, None, ["'messages' of the request is a text", "the last of the assistant"]),
        ({"prompt_ids": [1], "response_ids": [True]}, None, ["'response_ids'", "token ids"]),
        ({"prompt_ids": [-1], "response_ids": [1]}, None, ["'prompt_ids'", "token ids"]),
        ({"prompt_ids": [], "response_ids": [1]}, None, ["'prompt_ids'", "at least one"]),
    ],
)
def test_what_is_no_request(asked, item, words):
    with pytest.raises(RequestError) as refused:
        read(asked)
    assert refused.value.status == 400
    assert refused.value.details.get("item") == item
    assert [word for word in words if word not in str(refused.value)] == []


def test_too_many_items():
    assert len(read({"items": [ITEM] * 4}).rows) == 4
    with pytest.raises(RequestError, match="has 5 items; at most 4") as refused:
        read({"items": [ITEM] * 5})
    assert refused.value.status == 413


def test_answers_follow_the_request(length_scorer):
    def answer(asked, *scored):
        return read(asked).answer(scored, [one.scores[0] for one in scored], "mine")

    one, other = length_scorer(read({"items": [ITEM, {"prompt": "long", "response": "four"}]}).rows)
    always = {"normalised": False, "model": "mine"}
    assert answer({"items": [ITEM, ITEM]}, one, other) == {"scores": [2.0, 4.0], "truncated": [False, True], **always}
    assert answer(ITEM, other) == {"score": 4.0, "truncated": True, **always}
    assert answer({"items": []}) == {"scores": [], "truncated": [], **always}
    two = [part._replace(objectives={"good": part.scores, "short": [0.0]}) for part in (one, other)]
    assert answer({"items": [ITEM, ITEM]}, *two)["objectives"] == {"good": [2.0, 4.0], "short": [0.0, 0.0]}
    assert answer({**ITEM, "normalise": True}, two[0]) == {
        "score": 2.0,
        "truncated": False,
        "objectives": {"good": 2.0, "short": 0.0},
        "normalised": True,
        "model": "mine",
    }


def test_the_schema_says_what_is_taken_and_given(length_scorer):
    batch, *singles = SCHEMA["$defs"]["request"]["anyOf"]
    items = batch["properties"]["items"]["items"]["anyOf"]
    assert [item["required"] for item in items] == [
        ["prompt", "response"],
        ["messages"],
        ["prompt_ids", "response_ids"],
    ]
    assert [one["required"] for one in singles] == [item["required"] for item in items]
    assert all(one["properties"]["normalise"] == {"type": "boolean", "default": False} for one in (batch, *singles))
    assert all(one["additionalProperties"] is False for one in (batch, *singles, *items))
    several, single = SCHEMA["$defs"]["answer"]["anyOf"]
    scored = length_scorer(read(ITEM).rows)
    for asked, schema in ((ITEM, single), ({"items": [ITEM]}, several)):
        answer = read(asked).answer(scored, [1.0], "mine")
        assert set(schema["required"]) == set(answer) == set(schema["properties"]) - {"objectives"}
    assert set(SCHEMA["$defs"]["error"]["properties"]["error"]["properties"]) == {"message", "item"}


def test_what_the_page_shows_is_taken():
    page = (Path(__file__).parents[4] / "docs/score.md").read_text()
    shown = [block for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if '"row"' not in block]
    (command,) = re.findall(r"-d '(.*)'", page)
    assert len(read(command.encode()).rows) == 1
    single, batch, several = map(json.loads, shown)
    assert len(read(batch).rows) == len(several["scores"]) == 2
    for answer, schema in zip((several, single), SCHEMA["$defs"]["answer"]["anyOf"], strict=True):
        assert set(answer) == set(schema["required"])
