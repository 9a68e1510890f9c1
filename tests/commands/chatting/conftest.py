"""A talk with voices that say what the test wants, on a screen that can be read."""

from __future__ import annotations

import signal

import pytest

from lit_rlhf.commands.chatting.screen import Screen
from lit_rlhf.commands.chatting.session import Session
from lit_rlhf.commands.speaking.judging import Verdict
from lit_rlhf.commands.speaking.prompts import FittedPrompt
from lit_rlhf.commands.speaking.voices import Piece, Voices
from lit_rlhf.rollout.sampling.token_stream import StreamOptions

NOTHING = FittedPrompt([1], [], 0)


class SpokenAnswer:
    """Says its pieces; an exception among them is raised, and a signal is sent to this process."""

    def __init__(self, pieces, prompt=NOTHING, end="stop"):
        self.pieces, self.prompt, self.end = pieces, prompt, end
        self.text, self.num_tokens = "", 0

    def __iter__(self):
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, signal.Signals):
                signal.raise_signal(piece)
                continue
            self.text += piece
            self.num_tokens += 1
            yield Piece(piece)


class FakeVoice:
    """Answers with its name, the number of messages and the seed; ``next`` holds what it says instead."""

    def __init__(self, name, has_template=True):
        self.name, self.has_template, self.reader = name, has_template, self
        self.sees = False
        self.asked, self.next, self.end, self.num_left = [], None, "stop", 0

    def fit(self, messages, num_wanted):
        return FittedPrompt([1], list(messages[self.num_left :]), self.num_left)

    def whole(self, text):
        return FittedPrompt([1], text)

    def answer(self, prompt, options):
        self.asked.append((prompt.said, options))
        number = 1 if isinstance(prompt.said, str) else len(prompt.said) + prompt.num_left
        return SpokenAnswer(self.next or [f"{self.name} ", f"{number} {options.seed}"], prompt, self.end)


@pytest.fixture
def talk(tmp_path):
    """Factory of talks of sft, dpo and base; the judge scores the length of an answer."""

    def make(has_template=True, is_judged=False):
        voices = Voices(None, {name: FakeVoice(name, has_template) for name in ("sft", "dpo", "base")})
        judge = (lambda prompt, text: Verdict(float(len(text)))) if is_judged else None
        options = StreamOptions(max_new_tokens=5, seed=10)
        return Session(voices, ("sft",), judge, Screen(False), tmp_path / "mine.jsonl", options)

    return make


@pytest.fixture
def spoken_answer():
    return SpokenAnswer
