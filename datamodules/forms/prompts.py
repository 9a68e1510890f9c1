"""What is asked: prompts from the columns that hold them, and conversations parted before their last answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from datamodules.forms.fields import Fields
from datamodules.forms.messages import read_turns
from datamodules.forms.splitting import assistant, is_empty, turns_of, user
from datamodules.forms.values import read_list, read_text, wrong_type
from datamodules.records import BadRowError, Message, Response, Text

CONVERSATIONS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt")
QUESTIONS = ("question", "problem", "query", "input")


class Draft(NamedTuple):
    """What a form makes of a row; the rest of the record follows from the row alone.

    Args:
        prompt: text, messages or token ids.
        responses: the answers, in the order of the row.
        columns: what the form adds to the columns of the row.
    """

    prompt: Text
    responses: Sequence[Response] = ()
    columns: Mapping[str, Any] = MappingProxyType({})


def read_prompt(fields: Fields, name: str) -> Text:
    r"""Read the prompt of a row.

    Text under ``prompt`` is taken as it is. Text under any other name, or beside ``system`` or ``history``, is what a
    user says in a conversation. To an ``instruction`` belongs its ``input`` (or ``context``), in a line of its own.

    Args:
        fields: the row.
        name: the column that holds the prompt.

    Raises:
        BadRowError: if it is neither text nor messages.

    Example:
        >>> read_prompt(Fields({"instruction": "Add.", "input": "1, 2"}), "instruction")
        [{'role': 'user', 'content': 'Add.\n1, 2'}]
    """
    value = fields[name]
    if name in CONVERSATIONS or (isinstance(value, list) and value):
        return read_turns(name, value, fields.tags)
    if name == "prompt" and value == []:
        return []
    words = fields.words(name)
    if not isinstance(words, str):
        return words
    history = _read_history(fields) if name != "history" else []
    if name == "prompt" and not history and not any(map(fields.get, SYSTEMS)):
        return words
    if name == "instruction" and (given := fields.ask("input", "context")):
        words = with_input(words, fields.text(given))
    return [*history, user(words)]


def with_input(instruction: str, given: str) -> str:
    """An instruction and what it is about."""
    return "\n".join(filter(None, (instruction, given)))


def with_system(fields: Fields, prompt: Text) -> Text:
    """Put the column ``system`` (or ``system_prompt``) before a conversation that does not begin with a system turn."""
    turns = turns_of(prompt)
    name = fields.ask(*SYSTEMS) if turns else None
    if name is None or not (text := fields.text(name)) or turns[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": text}, *turns]


def before_answer(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """Part a conversation before the assistant turns that it ends in; it may end in none."""
    end = len(turns)
    while end and turns[end - 1]["role"] == "assistant":
        end -= 1
    return turns[:end], turns[end:]


def answered(prompt: Text | None) -> tuple[list[Message], list[Message]]:
    """Part a conversation before its last answer, which it must have.

    Raises:
        BadRowError: if it ends in the turn of another.
    """
    before, answer = before_answer(turns_of(prompt or []))
    if not answer:
        raise BadRowError("missing_response", "the conversation must end in an assistant turn, which is the response")
    if is_empty(answer):
        raise BadRowError("empty_response", "the last assistant turn is empty")
    return before, answer


def _read_history(fields: Fields) -> list[Message]:
    """Earlier turns: messages, or pairs of what the user said and what the assistant answered."""
    name = fields.ask("history")
    value = fields[name] if name else []
    if not value:
        return []
    pairs = read_list("'history'", value, "a list of [user, assistant] pairs")
    if isinstance(pairs[0], dict):
        return read_turns("history", pairs, fields.tags)
    turns: list[Message] = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong_type(f"history[{number}]", pair, "a pair [user, assistant]")
        said, answered = (read_text(f"history[{number}][{place}]", text) for place, text in enumerate(pair))
        turns += [user(said), *assistant(answered)]
    return turns
