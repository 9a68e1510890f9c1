"""Where the assistant turns lie in a rendered conversation.

A turn is what the model has to write: all that follows the header (what the template writes when asked for a generation
prompt), up to and with the stop token. Templates cut, move and add text as they like, and many render a conversation
otherwise than its beginning, so a turn is not found by rendering the beginning:

1. The conversation is rendered once more with a mark at the end of every text of every message. Where the marks are
   taken out again the two renderings must be equal; so each mark tells where its message ends.
2. A template that looks into its messages (for ``</tool_response>`` at the end, say) may render something else there.
   Then one message is marked at a time, and what follows the mark, or else precedes it, must be equal.
3. The header is what the template writes after the message before, when asked for a generation prompt; the turn begins
   where the rendering departs from it. A block of thoughts that the template puts into the turn is part of it.
4. The stop token is the first special token after the turn's last text: ``<|im_end|>``, ``<|eot_id|>``, ``</s>``. The
   line break that many templates write after it is not part of the turn.

``{% generation %}`` marks are not read: some leave out the stop token, some take in the line break after it, and most
templates have none; so all templates are treated alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from datamodules.encoding.rendering import ChatRenderer
from datamodules.encoding.tokenizers import CLOSE, OPEN
from datamodules.records import BadRowError, Message, Record, common_prefix_length

# Unlike the numbers of hidden special tokens, those of messages are preceded by a letter.
_MARK = re.compile(f"{OPEN}m(\\d+){CLOSE}")
_TEXTS = ("reasoning_content", "reasoning", "thinking", "content")


class Turn(NamedTuple):
    """Where an assistant turn lies in a rendering.

    Args:
        start: its first character.
        end: where it ends, its stop token included.
        has_stop: whether it has a stop token; a turn without one ends with its text.
    """

    start: int
    end: int
    has_stop: bool


class TurnFinder:
    """Finds the assistant turns of conversations.

    Args:
        chat: renders them.
    """

    def __init__(self, chat: ChatRenderer) -> None:
        self.chat = chat

    def find(self, record: Record, messages: list[Message], text: str) -> dict[int, Turn]:
        """Say where the assistant turns lie.

        Args:
            record: gives tools and further variables of the template.
            messages: the whole conversation, from :meth:`ChatRenderer.clean`.
            text: its rendering.

        Returns:
            The turns by the index of their messages; one without text, or that the template leaves out, is missing.

        Raises:
            BadRowError: if a turn cannot be found.
        """
        marked = [_mark(message, number) for number, message in enumerate(messages)]
        singly = ([*messages[:at], marked[at], *messages[at + 1 :]] for at in range(len(messages)))
        ends = self.ends(record, marked, singly, text)
        headers: dict[str, str] = {}
        turns = {}
        for number, end in ends.items():
            if messages[number]["role"] != "assistant":
                continue
            before = max((other for other in ends.values() if other < end), default=0)
            after = min((other for other in ends.values() if other > end), default=len(text))
            role = messages[number - 1]["role"] if number else ""
            if role not in headers:
                headers[role] = self._header(record, marked, number)
            between = text[before:end].lstrip()  # the space after a message is its own
            start = end - len(between) + common_prefix_length(between, headers[role])
            stop = self.chat.tokenizer.special_end(text, end, after)
            turns[number] = Turn(start, stop or end, has_stop=stop is not None)
        return turns

    def ends(self, record: Record, marked: list[Message], singly: Iterable[list[Message]], text: str) -> dict[int, int]:
        """Say where marks lie in the rendering without them.

        Args:
            record: gives tools and further variables of the template.
            marked: the whole conversation, with :func:`mark` in its texts.
            singly: for each mark, by number, the conversation with that mark alone.
            text: its rendering without any.

        Returns:
            Where the last mark of each number lies; those that the template leaves out are missing.

        Raises:
            BadRowError: if it cannot be told of one.
        """
        bare, ends = _without_marks(self.chat.render(record, marked))
        if bare == text:
            return ends
        found = ((number, self._end(record, messages, number, text)) for number, messages in enumerate(singly))
        return {number: end for number, end in found if end}

    def _end(self, record: Record, one_marked: list[Message], number: int, text: str) -> int | None:
        """Where the last text of one message ends, from a rendering with a mark there only."""
        bare, ends = _without_marks(self.chat.render(record, one_marked))
        if number not in ends:
            return None
        if text.endswith(bare[ends[number] :]):
            return len(text) - (len(bare) - ends[number])
        if text.startswith(bare[: ends[number]]):
            return ends[number]
        raise BadRowError("chat_template", f"cannot tell where message {number} ends in what the chat template writes")

    def _header(self, record: Record, marked: list[Message], number: int) -> str:
        """What the template writes between the message before an assistant turn and the answer."""
        if number:
            prompt = self.chat.render(record, marked[:number], add_generation_prompt=True)
            return _MARK.split(prompt)[-1].lstrip()
        # Nothing comes before: what it writes at the beginning, and then for an answer to this very turn.
        turn = self.chat.render(record, marked[:1])
        opening = _MARK.split(turn, maxsplit=1)[0]
        header = self.chat.render(record, marked[:1], add_generation_prompt=True).removeprefix(turn)
        return opening[: opening.find(header) + len(header)].lstrip() if header in opening else ""


def mark(text: str, number: int) -> str:
    """Mark the end of a text, before the white space behind it; nothing is marked of white space alone."""
    shown = text.rstrip()  # templates strip: a mark after the space would keep it from being stripped
    return f"{shown}{OPEN}m{number}{CLOSE}{text[len(shown) :]}" if shown else text


def _mark(message: Message, number: int) -> Message:
    """Mark the end of every text in a message that the template may write."""
    marking = partial(mark, number=number)
    marked = {**message, **{key: _mark_blocks(marking, message[key]) for key in _TEXTS if key in message}}
    if isinstance(calls := message.get("tool_calls"), list):
        marked["tool_calls"] = [_mark_call(marking, call) for call in calls]
    return marked


def _mark_blocks(mark: Callable[[str], str], content: Any) -> Any:
    if isinstance(content, str):
        return mark(content)
    if not isinstance(content, list):
        return content
    return [{**block, "text": mark(block["text"])} if _is_text(block) else block for block in content]


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and isinstance(block.get("text"), str)


def _mark_call(mark: Callable[[str], str], call: Any) -> Any:
    """Mark the name and the arguments of a tool call; ids stay as they are, for templates check their length."""
    if not isinstance(call, dict):
        return call
    if "function" in call:
        return {**call, "function": _mark_call(mark, call["function"])}
    return {key: _mark_leaves(mark, value) if key in ("name", "arguments") else value for key, value in call.items()}


def _mark_leaves(mark: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, list):
        return [_mark_leaves(mark, item) for item in value]
    if isinstance(value, dict):
        return {key: _mark_leaves(mark, item) for key, item in value.items()}
    return value


def _without_marks(text: str) -> tuple[str, dict[int, int]]:
    """A rendering without its marks, and where the last mark of each message stood in it."""
    ends: dict[int, int] = {}
    pieces, at, removed = [], 0, 0
    for match in _MARK.finditer(text):
        pieces.append(text[at : match.start()])
        ends[int(match[1])] = match.start() - removed
        at, removed = match.end(), removed + len(match[0])
    return "".join([*pieces, text[at:]]), ends
