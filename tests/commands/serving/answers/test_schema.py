"""Requests for answers: what is read, what is left aside, and what is refused with a word that helps."""

from __future__ import annotations

import json

import pytest

from lit_rlhf.commands.serving.answers.schema import read_chat, read_completion
from lit_rlhf.commands.serving.requests import RequestError
from lit_rlhf.rollout.sampling.token_stream import StreamOptions

TALK = [{"role": "user", "content": "Hi"}]


def chat(**asked):
    return read_chat(json.dumps({"messages": TALK, **asked}).encode(), 4)


def completion(**asked):
    return read_completion(json.dumps({"prompt": "Hi", **asked}).encode(), 4)


@pytest.mark.parametrize("read", [chat, completion])
def test_every_value_arrives(read):
    request = read(
        model="dpo", temperature=0, top_p=0.5, max_tokens=7, n=2, seed=-3, stop="x", stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert request.options == StreamOptions(0.0, 0.5, 7, -3)
    assert (request.model, request.num_answers, request.stop_strings) == ("dpo", 2, ("x",))
    assert request.is_streamed
    assert request.has_usage
    assert request.num_top is None
    assert request.is_chat == (read is chat)


def test_what_is_not_said():
    request = chat(n=None)
    assert (request.model, request.num_answers, request.stop_strings, request.is_streamed) == (None, 1, (), False)
    assert (request.options.temperature, request.options.top_p) == (1.0, 1.0)
    assert request.options.max_new_tokens > 10**9  # as long as the model has room
    assert completion().options.max_new_tokens == 16
    assert chat().options.seed != chat().options.seed
    assert not chat(stream_options={}).has_usage


def test_both_names_of_the_length_and_both_kinds_of_log_probabilities():
    assert chat(max_completion_tokens=5, max_tokens=9).options.max_new_tokens == 5
    assert chat(logprobs=True).num_top == 0
    assert chat(logprobs=True, top_logprobs=3).num_top == 3
    assert chat(logprobs=False).num_top is None
    assert completion(logprobs=2).num_top == 2
    assert completion(stop=["a", "b"]).stop_strings == ("a", "b")


def test_words_of_messages_and_prompts():
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [{"role": "developer", "content": "x", "name": "me"}, {"role": "user", "content": blocks}]
    (messages,) = chat(messages=given).prompts
    assert messages == [{"role": "system", "content": "x"}, {"role": "user", "content": "ab"}]
    assert completion(prompt=["a", "b"]).prompts == ["a", "b"]


def test_a_picture_comes_with_the_request():
    blocks = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "What?"},
    ]
    (((message,)),) = chat(messages=[{"role": "user", "content": blocks}]).prompts
    assert message["content"] == [{"type": "image", "image": "data:image/png;base64,AAAA"}, blocks[1]]


@pytest.mark.parametrize("key", ["user", "metadata", "store", "service_tier", "parallel_tool_calls"])
def test_what_says_nothing_about_the_answer_is_left_aside(key):
    assert chat(**{key: "anything"}).prompts == [TALK]


@pytest.mark.parametrize(
    ("key", "neutral", "other"),
    [
        ("frequency_penalty", 0, 0.5),
        ("presence_penalty", 0.0, -1),
        ("logit_bias", {}, {"5": 1}),
        ("tools", [], [{"type": "function"}]),
        ("tool_choice", "none", "required"),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("best_of", 1, 3),
        ("echo", False, True),
    ],
)
def test_what_is_not_there_may_ask_for_nothing(key, neutral, other):
    assert completion(**{key: neutral}).prompts == ["Hi"]
    with pytest.raises(RequestError, match=f"'{key}' is not there in this server") as refused:
        completion(**{key: other})
    assert refused.value.details == {"param": key}


@pytest.mark.parametrize(
    ("asked", "words", "param"),
    [
        ({"temperature": -1}, "at least 0", "temperature"),
        ({"temperature": "hot"}, "'temperature' is a text", "temperature"),
        ({"temperature": True}, "at least 0", "temperature"),
        ({"top_p": 0}, "above 0 and at most 1", "top_p"),
        ({"max_tokens": 0}, "at least 1", "max_tokens"),
        ({"max_tokens": 1.5}, "at least 1", "max_tokens"),
        ({"n": 5}, "5 answers are asked for; at most 4", "n"),
        ({"seed": 2**64}, "64 bits", "seed"),
        ({"stop": ["a", ""]}, "none of them empty", "stop"),
        ({"stop": ["a"] * 17}, "at most 16", "stop"),
        ({"stream": 1}, "true or false", "stream"),
        ({"stream_options": True}, "include_usage", "stream_options"),
        ({"logprobs": 3}, "'logprobs' is 3; it must be true or false", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "from 0 to 20", "top_logprobs"),
        ({"top_logprobs": 2}, "needs 'logprobs': true", "top_logprobs"),
        ({"max_token": 5}, r"did you mean 'max_tokens'\?", "max_token"),
        ({"model": 3}, "GET /v1/models", "model"),
        ({"messages": None}, "the request has no 'messages'", "messages"),
        ({"messages": []}, "at least one", "messages"),
        ({"messages": ["Hi"]}, r"messages\[0\] is a text", "messages"),
        ({"messages": [{"role": "alien", "content": "a"}]}, "one of system, developer, user", "messages"),
        ({"messages": [{"role": "user"}]}, r"'content' of messages\[0\] is null", "messages"),
        ({"messages": [{**TALK[0], "tool_calls": [{}]}]}, "'tool_calls' of", "messages"),
    ],
)
def test_what_is_no_request_for_a_conversation(asked, words, param):
    with pytest.raises(RequestError, match=words) as refused:
        chat(**asked)
    assert (refused.value.status, refused.value.details["param"]) == (400, param)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "image": "secrets.png"},
        {"type": "image", "image": "data:image/png;base64,AAAA"},
        {"type": "image_url", "image_url": {"url": "file:///secrets.png"}},
        {"type": "image_url", "image_url": {"url": "http://example.com/a.png"}},
        {"type": "image_url", "image_url": "secrets.png"},
        {"type": "text"},
        {"type": ["text"]},
        "Hi",
    ],
)
def test_no_file_of_this_machine_is_opened(block):
    with pytest.raises(RequestError, match=r"content\[1\] of messages\[0\] must be .*; nothing is fetched"):
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, block]}])


@pytest.mark.parametrize("asked", [{"prompt": []}, {"prompt": [1, 2]}, {"prompt": None}, {"logprobs": True}])
def test_what_is_no_request_for_a_completion(asked):
    with pytest.raises(RequestError) as refused:
        completion(**asked)
    assert refused.value.details["param"] == next(iter(asked))


def test_what_is_no_object():
    with pytest.raises(RequestError, match="it must be an object with 'messages'"):
        read_chat(b"[]", 4)
    with pytest.raises(RequestError, match="not JSON"):
        read_chat(b"{", 4)


def test_many_prompts_are_many_answers():
    with pytest.raises(RequestError, match="6 answers"):
        completion(prompt=["a", "b", "c"], n=2)
