"""A talk: who speaks, what was said last, and what is asked next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lit_rlhf.commands.chatting.conversation import Conversation
from lit_rlhf.commands.chatting.feedback import Row, append_row
from lit_rlhf.commands.chatting.screen import Screen
from lit_rlhf.commands.speaking.judging import Judge
from lit_rlhf.commands.speaking.prompts import Messages
from lit_rlhf.commands.speaking.voices import Answer, Voices
from lit_rlhf.rollout.sampling.token_stream import StreamOptions


class Reply(NamedTuple):
    """An answer that was given.

    Args:
        voice: who gave it.
        prompt: what it answers, as the model saw it: messages, or a text.
        text: what was said.
        is_whole: whether nobody stopped it.
    """

    voice: str
    prompt: Messages | str
    text: str
    is_whole: bool


@dataclass
class Session:
    """A talk with one voice, or with two side by side.

    Args:
        voices: all that can speak.
        speaking: names of those that do.
        judge: scores the answers; None = nobody does.
        screen: shows it all.
        feedback: file of what a person thinks of the answers.
        options: how answers are drawn.
    """

    voices: Voices
    speaking: tuple[str, ...]
    judge: Judge | None
    screen: Screen
    feedback: Path
    options: StreamOptions

    def __post_init__(self) -> None:
        self.conversation = Conversation()
        self.replies: list[Reply] = []
        self.pictures: list[str] = []
        self.num_drawn = 0

    def begin(self) -> None:
        """Forget what was said, but not what the system says."""
        self.conversation.turns = []
        self.replies, self.pictures = [], []

    def ask(self, text: str) -> None:
        """Have a message answered, with the pictures that it shows before its words.

        Raises:
            ValueError: if it does not fit the model.
        """
        shown = [{"type": "image", "image": picture} for picture in self.pictures]
        self.pictures = []
        self.conversation.ask([*shown, {"type": "text", "text": text}] if shown else text)
        self.answer()

    def answer(self) -> None:
        """Answer the last question, after what was asked before, each time with other draws.

        Raises:
            ValueError: if it does not fit the model.
        """
        options = replace(self.options, seed=self.options.seed + self.num_drawn)
        self.num_drawn += 1
        self.replies = []
        answers = {}
        for name in self.speaking:
            voice, messages = self.voices.by_name[name], self.conversation.messages
            if voice.reader.has_template:
                prompt = voice.reader.fit(messages, options.max_new_tokens)
            else:
                prompt = voice.reader.whole(str(messages[-1]["content"]))
            answers[name] = voice.answer(prompt, options)
        is_whole = self.screen.say(answers)
        self.replies = [Reply(name, answer.prompt.said, answer.text, is_whole) for name, answer in answers.items()]
        if self.replies[0].text:
            self.conversation.answer(self.replies[0].text)
        self._remark(list(answers.values()), is_whole)

    def keep(self, row: Row) -> None:
        """Add a row to the feedback.

        Raises:
            OSError: if it cannot be written.
        """
        append_row(self.feedback, row)
        self.screen.note(f"added to {self.feedback}")

    def _remark(self, answers: list[Answer], is_whole: bool) -> None:
        """Say what the answers do not show."""
        if num_left := max(answer.prompt.num_left for answer in answers):
            self.screen.note(f"the {num_left} oldest messages no longer fit the model and were left out")
        if not is_whole:
            self.screen.note("stopped")
        elif any(answer.end == "length" for answer in answers):
            self.screen.note(f"cut off after {max(answer.num_tokens for answer in answers)} tokens")
        if self.judge is not None and is_whole:
            self.screen.verdicts({reply.voice: self.judge(reply.prompt, reply.text) for reply in self.replies})
