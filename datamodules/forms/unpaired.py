"""Forms of rows whose answers are judged one by one: a thumb up or down."""

from __future__ import annotations

from collections.abc import Mapping

from datamodules.forms.fields import Fields
from datamodules.forms.instructions import has_answer, read_answer, read_conversation
from datamodules.forms.prompts import Draft
from datamodules.forms.splitting import assistant, part, turns_of
from datamodules.forms.values import is_verdict, read_text, read_verdict
from datamodules.records import Response, Text

THUMBS = ("kto_tag", "label")


def has_thumb(fields: Fields) -> bool:
    """Whether an answer is judged: a ``label`` beside other columns may mean anything else, such as a class."""
    return "kto_tag" in fields or "completion" in fields or is_verdict(fields["label"])


def has_judged_answer(fields: Fields) -> bool:
    """Whether there is an answer in words, and a thumb."""
    return has_thumb(fields) and has_answer(fields)


def read_judged_answer(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A prompt, an answer, and a thumb."""
    (draft,) = read_answer(fields, prompt)
    return [Draft(draft.prompt, [_thumb(draft.responses[0].text, _verdict(fields))])]


def read_judged_conversation(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A conversation whose last answer is judged; one that ends in another's turn is a prompt."""
    return [
        draft._replace(responses=[_thumb(one.text, _verdict(fields)) for one in draft.responses])
        for draft in read_conversation(fields, prompt)
    ]


def has_graded_answers(fields: Fields) -> bool:
    """Whether columns hold ``{is_correct, solution}``."""
    return any(map(_is_graded, fields.values.values()))


def read_graded_answers(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A question, and columns of any name that hold an answer each, ``{is_correct, solution}``."""
    names = [name for name, value in fields.values.items() if _is_graded(value)]
    answers: list[Text] = [read_text(f"{name}['solution']", fields[name]["solution"]) for name in names]
    verdicts = [read_verdict(f"{name}['is_correct']", fields[name]["is_correct"]) for name in names]
    prompt, texts = part(prompt, list(map(repr, names)), answers)
    responses = [_thumb(text, verdict) for text, verdict in zip(texts, verdicts, strict=True)]
    return [Draft(prompt, sorted(responses, key=lambda response: response.rank))]  # columns have no order of their own


def read_statement(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A sentence that is true or false: the right verdict is preferred to the other one."""
    *before, statement = turns_of(prompt or [])
    right = read_verdict("'label'", fields["label"])
    responses = [
        _thumb(assistant(word), is_right) for word, is_right in ((_word(right), True), (_word(not right), False))
    ]
    return [Draft([*before, {**statement, "content": f"True or false: {statement['content']}"}], responses)]


def _word(verdict: bool) -> str:
    return "true" if verdict else "false"


def _is_graded(value: object) -> bool:
    return isinstance(value, Mapping) and "is_correct" in value and "solution" in value


def _thumb(text: Text, is_up: bool) -> Response:
    return Response(text, rank=int(not is_up), label=is_up)


def _verdict(fields: Fields) -> bool:
    name = fields.first(*THUMBS) or ""
    return read_verdict(repr(name), fields[name])
