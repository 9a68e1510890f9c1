"""Forms of rows that hold one answer to imitate, or none: instructions, conversations, texts and prompts."""

from __future__ import annotations

from collections.abc import Mapping

from datamodules.forms.fields import Fields
from datamodules.forms.prompts import Draft, before_answer, with_input
from datamodules.forms.splitting import is_empty, part, turns_of
from datamodules.forms.values import read_list, read_text, wrong_type
from datamodules.records import BadRowError, Response, Text

_ANSWERS = ("completion", "response", "output")
_WORKED = ("solution", "answer")  # may as well hold a number to compare with, which is no text to imitate
ANSWERS = (*_ANSWERS, *_WORKED)


def has_answer(fields: Fields) -> bool:
    """Whether a row holds an answer in words."""
    return fields.first(*_ANSWERS) is not None or any(isinstance(fields.get(name), str) for name in _WORKED)


def read_answer(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A prompt and one answer, each text or messages."""
    name = fields.first(*_ANSWERS) or next(name for name in _WORKED if isinstance(fields.get(name), str))
    prompt, (text,) = part(prompt, (repr(name),), [fields.words(name)])
    return [Draft(prompt, [Response(text)])]


def read_conversation(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A conversation: its last assistant turn is the response, or it has none if it ends in another's turn."""
    before, answer = before_answer(turns_of(prompt or []))
    if answer and is_empty(answer):
        raise BadRowError("empty_response", "the last assistant turn is empty")
    return [Draft(before, [Response(answer)] if answer else [])]


def read_instances(fields: Fields, prompt: Text | None) -> list[Draft]:
    """An instruction and ``instances``, each of which is an example ``{input, output}``."""
    drafts = []
    instruction = turns_of(prompt or [])
    for number, item in enumerate(read_list("'instances'", fields["instances"], "a list of {input, output}")):
        place = f"instances[{number}]"
        if not isinstance(item, Mapping):
            raise wrong_type(place, item, "a mapping {input, output}")
        given = read_text(f"{place}['input']", item.get("input") or "")
        output = read_text(f"{place}['output']", item.get("output"))
        asked = {**instruction[-1], "content": with_input(instruction[-1]["content"], given)}
        whole, (text,) = part([*instruction[:-1], asked], (f"{place}['output']",), [output])
        drafts.append(Draft(whole, [Response(text)]))
    return drafts


def read_whole_text(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A text that is imitated from its first character."""
    text = fields.text("text")
    if is_empty(text):
        raise BadRowError("empty_response", "'text' is empty")
    return [Draft("", [Response(text)])]


def read_prompt_alone(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A prompt that is still to be answered."""
    return [Draft(prompt or "")]
