"""Servers of answers, by a voice that says what the test wants and by real policies."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from threading import Event, Thread
from types import SimpleNamespace

import pytest
import torch

from lit_rlhf.commands.serving.answers.handler import AnswerServer
from lit_rlhf.commands.serving.server import Settings
from lit_rlhf.commands.speaking.prompts import FittedPrompt, PromptTooLongError
from lit_rlhf.commands.speaking.voices import Piece, Voices
from lit_rlhf.rollout.sampling.token_stream import DrawnToken


class EchoVoice:
    """Says the words of the last message one by one; token 9 ends it. ``go`` lets it, ``num_said`` counts."""

    def __init__(self, has_template=True):
        self.has_template, self.reader = has_template, self
        self.stop_tokens = [9]
        self.tokenizer = SimpleNamespace(decode=lambda tokens: f"t{tokens[0]}")
        self.go, self.begun, self.num_said, self.asked = Event(), Event(), 0, []
        self.go.set()
        self.logprobs = torch.log_softmax(torch.arange(10.0), 0)

    def whole(self, prompt):
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if text == "long":
            raise PromptTooLongError("the prompt has 9 tokens, and the model takes 9 with its answer")
        if text == "refused":
            raise ValueError("the chat template refuses this conversation")
        return FittedPrompt(list(range(len(text.split()))), text)

    def answer(self, prompt, options, stop_strings):
        self.asked.append((prompt, options, stop_strings))
        return EchoAnswer(self, prompt, options)


class EchoAnswer:
    def __init__(self, voice, prompt, options):
        self.voice, self.prompt, self.options = voice, prompt, options
        self.num_tokens, self.end = 0, None

    def __iter__(self):
        logprobs = self.voice.logprobs
        for number, word in enumerate(self.prompt.said.split()):
            if number == self.options.max_new_tokens:
                self.end = "length"
                return
            self.voice.begun.set()
            assert self.voice.go.wait(10)
            if word == "boom":
                raise RuntimeError("boom")
            self.num_tokens += 1
            self.voice.num_said += 1
            yield Piece(f"{word} ", DrawnToken(number, logprobs))
        self.num_tokens += 1
        self.end = "stop"
        yield Piece("", DrawnToken(9, logprobs))


@pytest.fixture
def voice():
    return EchoVoice()


@pytest.fixture
def answer_server(voice):
    """``answer_server(token=...)``: a server of echo, and of plain, which has no chat template."""
    servers = []

    def start(voices=None, **settings):
        voices = voices or Voices(None, {"echo": voice, "plain": EchoVoice(has_template=False)})
        server = AnswerServer(voices, Settings("origin", port=0, **{"max_items": 4, **settings}))
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    voice.go.set()
    for server in servers:
        server.stop()


@pytest.fixture
def stream():
    """``stream(server, path, body)``: the events of a stream, the last of them in words."""

    def ask(server, path, body):
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("POST", path, json.dumps({**body, "stream": True}).encode())
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        assert answer.headers["Content-Type"] == "text/event-stream"
        *events, last = answer.read().decode().strip().split("\n\n")
        connection.close()
        assert all(event.startswith("data: ") for event in [*events, last])
        events = [json.loads(event.removeprefix("data: ")) for event in events]
        last = last.removeprefix("data: ")
        return events, last if last == "[DONE]" else json.loads(last)

    return ask
