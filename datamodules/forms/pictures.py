"""Pictures of a record: every mark ``<image>`` in the prompt has its reference, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from datamodules.forms.fields import Fields
from datamodules.forms.messages import IMAGE_MARK
from datamodules.forms.splitting import turns_of
from datamodules.forms.values import wrong_type
from datamodules.records import BadRowError, Response, Text


def with_pictures(fields: Fields, prompt: Text, responses: Sequence[Response]) -> tuple[Text, tuple[Any, ...]]:
    """Join the pictures of a row to the marks of its prompt.

    Pictures come from blocks of the turns, or from the column ``images`` (or ``image``). A prompt without marks gets
    them all at the beginning of its first user turn. In a row without pictures ``<image>`` is text like any other.

    Returns:
        The prompt with its marks, and one reference for each of them.

    Raises:
        BadRowError: if marks and pictures differ in number, or a response shows a picture.
    """
    if any(turn.get("pictures") for response in responses for turn in turns_of(response.text)):
        raise BadRowError("unsupported_media", "a response shows a picture; pictures belong to the prompt")
    in_turns = [picture for turn in turns_of(prompt) for picture in turn.get("pictures", ())]
    images = _filled(in_turns, _in_column(fields))
    if not images:
        return prompt, ()
    if in_turns:
        prompt = [{key: turn[key] for key in turn if key != "pictures"} for turn in turns_of(prompt)]
    num_marks = sum(text.count(IMAGE_MARK) for text in _texts(prompt))
    if num_marks == 0:
        return _marked(prompt, IMAGE_MARK * len(images)), tuple(images)
    if num_marks != len(images):
        message = f"the prompt has {num_marks} marks {IMAGE_MARK} for {len(images)} pictures; give one mark for each"
        raise BadRowError("image_marks", message)
    return prompt, tuple(images)


def _in_column(fields: Fields) -> list[Any]:
    for medium in ("videos", "audios"):
        if fields.get(medium):
            raise BadRowError("unsupported_media", f"{medium!r} is given; only text and pictures can be trained on")
    name = fields.ask("images", "image") or ""
    given = fields[name] if name else []
    pictures = given if isinstance(given, list) else [given]
    for number, picture in enumerate(pictures):
        if picture is None or picture == "":
            raise wrong_type(f"{name}[{number}]", picture, "a path, an address or a picture")
    return pictures


def _filled(in_turns: list[Any], in_column: list[Any]) -> list[Any]:
    """References in the order of their marks; blocks without one take those of the column."""
    num_open = in_turns.count(None)
    wanted = num_open or len(in_turns) or len(in_column)
    if len(in_column) not in ((wanted,) if num_open else (0, wanted)):
        message = f"the turns hold {wanted} pictures but 'images' {len(in_column)}; give one for each"
        raise BadRowError("image_marks", message)
    rest = iter(in_column)
    return [next(rest) if picture is None else picture for picture in in_turns] or in_column


def _texts(prompt: Text) -> Iterator[str]:
    if isinstance(prompt, str):
        yield prompt
    yield from (turn["content"] for turn in turns_of(prompt))


def _marked(prompt: Text, marks: str) -> Text:
    """Put marks before a text, or at the beginning of the first user turn; tokens stay as they are."""
    if isinstance(prompt, str):
        return marks + prompt
    turns = turns_of(prompt)
    first = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        return prompt
    return [*turns[:first], {**turns[first], "content": marks + turns[first]["content"]}, *turns[first + 1 :]]
