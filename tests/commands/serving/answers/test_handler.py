"""Requests for answers over HTTP, raw and as OpenAI's clients send them."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
TEXT = {"model": "plain", "prompt": "one two"}
CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"


def test_models(answer_server, ask):
    server = answer_server()
    status, answer, _ = ask(server, "GET", "/v1/models")
    assert (status, answer["object"], [model["id"] for model in answer["data"]]) == (200, "list", ["echo", "plain"])
    assert ask(server, "GET", "/v1/models/plain")[1] == answer["data"][1]
    assert answer["data"][1] == {"id": "plain", "object": "model", "created": 0, "owned_by": "origin"}
    assert ask(server, "GET", "/v1/models/other")[0] == 404
    assert ask(server, "GET", "/health")[:2] == (200, {"status": "ok"})


def test_a_conversation_and_a_text(answer_server, ask):
    server = answer_server()
    status, answer, _ = ask(server, path=CHATS, body=CHAT)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "one two three ")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    status, answer, _ = ask(server, path=TEXTS, body={**TEXT, "n": 2})
    assert [choice["text"] for choice in answer["choices"]] == ["one two ", "one two "]
    assert answer["model"] == "plain"
    assert ask(server, path=CHATS, body={"messages": CHAT["messages"]})[1]["model"] == "echo"


def test_a_streamed_conversation(answer_server, stream):
    events, last = stream(answer_server(), CHATS, {**CHAT, "max_tokens": 2})
    assert last == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "one "}, {"content": "two "}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, None, "length"]
    assert len({event["id"] for event in events}) == 1


def test_a_stream_of_several_texts_with_log_probabilities_and_numbers(answer_server, stream):
    asked = {**TEXT, "prompt": ["a b", "c"], "logprobs": 1, "stream_options": {"include_usage": True}}
    events, last = stream(answer_server(), TEXTS, asked)
    assert last == "[DONE]"
    choices = [event["choices"][0] for event in events[:-1]]
    assert [(choice["index"], choice["text"]) for choice in choices] == [
        (0, "a "),
        (0, "b "),
        (0, ""),
        (1, "c "),
        (1, ""),
    ]
    assert choices[1]["logprobs"]["tokens"] == ["t1"]
    assert (events[-1]["choices"], events[-1]["usage"]["completion_tokens"]) == ([], 5)


def test_the_first_words_come_before_the_last_are_drawn(answer_server, voice):
    server = answer_server()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        voice.go.clear()
        body = json.dumps({**CHAT, "stream": True}).encode()
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert voice.begun.wait(5)
        voice.go.set()
        seen = b""
        while b"one" not in seen:
            seen += connection.recv(65536)
        assert seen.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "asked", "status", "error"),
    [
        (CHATS, {"model": "ecko"}, 404, {"type": "not_found_error", "code": "model_not_found", "param": "model"}),
        (CHATS, {"model": "plain"}, 400, {"type": "invalid_request_error", "param": "messages", "code": None}),
        (CHATS, {"n": 9}, 400, {"param": "n"}),
        (CHATS, {"temper": 1}, 400, {"param": "temper"}),
        (TEXTS, {"prompt": "long"}, 400, {"code": "context_length_exceeded"}),
        (TEXTS, {"prompt": "refused"}, 400, {"code": None, "message": "the chat template refuses this conversation"}),
        (
            TEXTS,
            {"prompt": "boom", "model": "echo"},
            500,
            {"type": "server_error", "message": "it failed: RuntimeError"},
        ),
    ],
)
def test_errors_have_their_status_in_a_stream_too(path, asked, status, error, is_streamed, answer_server, ask, capsys):
    server = answer_server()
    body = {**(CHAT if path == CHATS else TEXT), **asked, "stream": is_streamed}
    found, answer, _ = ask(server, path=path, body=body)
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert {key: answer["error"][key] for key in error} == error
    assert ask(server, path=CHATS, body=CHAT)[0] == 200
    assert capsys.readouterr().err == ("RuntimeError: boom\n" if "boom" in str(asked) else "")


def test_what_fails_in_the_middle_of_a_stream_is_its_last_event(answer_server, stream, capsys):
    events, last = stream(answer_server(), TEXTS, {**TEXT, "prompt": "one boom"})
    assert [event["choices"][0]["text"] for event in events] == ["one "]
    assert last["error"]["type"] == "server_error"
    assert capsys.readouterr().err == "RuntimeError: boom\n"


def test_a_token_and_a_body_that_is_too_large(answer_server, ask):
    server = answer_server(token="secret", max_body=300)
    status, answer, _ = ask(server, path=CHATS, body=CHAT)
    assert (status, answer["error"]["type"]) == (401, "authentication_error")
    assert ask(server, "GET", "/v1/models")[0] == 401
    assert ask(server, path=CHATS, body=CHAT, Authorization="Bearer secret")[0] == 200
    large = {**CHAT, "stop": "x" * 300}
    assert ask(server, path=CHATS, body=large, Authorization="Bearer secret")[0] == 413


def test_too_many_requests_at_once(answer_server, ask, voice, monkeypatch):
    monkeypatch.setattr("lit_rlhf.commands.serving.answers.handler._MAX_WAITING", 1)
    server = answer_server()
    voice.go.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, server, path=CHATS, body=CHAT)
        assert voice.begun.wait(5)
        waiting = pool.submit(ask, server, path=CHATS, body=CHAT)
        while not server.worker._waiting.full():
            time.sleep(0.001)
        status, answer, headers = ask(server, path=CHATS, body=CHAT)
        assert (status, headers["Retry-After"], answer["error"]["type"]) == (503, "1", "overloaded_error")
        voice.go.set()
        assert [future.result(5)[0] for future in (running, waiting)] == [200, 200]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_for_a_client_that_leaves_nothing_more_is_drawn(is_streamed, answer_server, ask, voice, capfd):
    server = answer_server()
    voice.go.clear()
    body = json.dumps(
        {**CHAT, "messages": [{"role": "user", "content": "a " * 200_000}], "stream": is_streamed}
    ).encode()
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert voice.begun.wait(5)
    time.sleep(0.1)
    voice.go.set()
    assert ask(server, path=CHATS, body=CHAT)[0] == 200
    assert voice.num_said < 100_000
    assert capfd.readouterr().err == ""


def test_nothing_that_is_asked_is_written_anywhere(answer_server, ask, stream, capfd):
    server = answer_server()
    ask(server, path=CHATS, body={**CHAT, "messages": [{"role": "user", "content": "my secret"}]})
    stream(server, TEXTS, {**TEXT, "prompt": "my secret"})
    ask(server, path=TEXTS, body={**TEXT, "my secret": 1})
    assert capfd.readouterr() == ("", "")


def test_many_clients_of_real_policies_get_what_each_says_alone(answer_server, ask, voices_of, stream):
    voices = voices_of("sft", "dpo")
    asked = [
        {"model": name, "messages": [{"role": "user", "content": text}], "temperature": temperature, "seed": 3,
         "max_tokens": 6}
        for name in ("sft", "dpo", "base") for text in ("Hi", "How many legs?") for temperature in (0, 1)
    ]  # fmt: skip
    server = answer_server(voices)
    alone = [ask(server, path=CHATS, body=body)[1]["choices"] for body in asked]
    assert len({json.dumps(choices) for choices in alone}) > 6
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda body: ask(server, path=CHATS, body=body)[1]["choices"], asked[::-1]))
    assert together[::-1] == alone
    events, _ = stream(server, CHATS, asked[1])
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == alone[1][0]["message"]["content"]
