"""What has been said so far."""

from __future__ import annotations

from typing import Any

from lit_rlhf.commands.speaking.prompts import Messages


class Conversation:
    """Turns of a person and a policy, below what the system says.

    A message is ``{"role": ..., "content": ...}``; its content is a text, or blocks such as a picture and a text.

    Attributes:
        system: what the system says; empty = nothing.
        turns: user and assistant in turns; the last one may be a question that nobody has answered.
    """

    def __init__(self) -> None:
        self.system = ""
        self.turns: Messages = []

    @property
    def messages(self) -> Messages:
        """All of it, as a chat template takes it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def ask(self, content: Any) -> None:
        """Add what the person says, in place of a question that nobody has answered."""
        self._drop("user")
        self.turns.append({"role": "user", "content": content})

    def answer(self, text: str) -> None:
        """Add what was answered, in place of an answer that is there."""
        self._drop("assistant")
        self.turns.append({"role": "assistant", "content": text})

    def undo(self) -> bool:
        """Take back the last question and its answer. Returns whether there was one."""
        before = len(self.turns)
        self._drop("assistant")
        self._drop("user")
        return len(self.turns) < before

    def forget_answer(self) -> bool:
        """Take back the last answer, so that the question can be answered anew. Returns whether there is a question."""
        self._drop("assistant")
        return bool(self.turns)

    def _drop(self, role: str) -> None:
        if self.turns and self.turns[-1]["role"] == role:
            del self.turns[-1]
