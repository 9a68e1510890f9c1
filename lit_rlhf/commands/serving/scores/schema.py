"""What the reward server takes and gives: the JSON schema of it, and the reading of a request.

An item that is read becomes a row as a file would hold it, so that requests and files go the same way from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from datamodules.sources import Row
from lit_rlhf.commands.serving.requests import RequestError, kind_of, read_json, refuse, refuse_key

if TYPE_CHECKING:
    from lit_rlhf.commands.scoring import Scored

_MESSAGES = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role", "content"]}}
_WORDS = {"anyOf": [{"type": "string"}, _MESSAGES]}
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}


class _Key(NamedTuple):
    """A key of an item: whether a value is right, in words and as a schema."""

    is_right: Callable[[Any], bool]
    wanted: str
    schema: dict[str, Any]


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def _are_words(value: object) -> bool:
    return isinstance(value, str) or _are_messages(value)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


_KEYS = {
    "prompt": _Key(_are_words, "a text or a list of messages", _WORDS),
    "response": _Key(_are_words, "a text or a list of messages", _WORDS),
    "messages": _Key(_are_messages, "a list of messages, the last of the assistant", _MESSAGES),
    "prompt_ids": _Key(_are_ids, "a list of token ids, at least one", _IDS),
    "response_ids": _Key(_are_ids, "a list of token ids, at least one", _IDS),
}
_FORMS = (("prompt", "response"), ("messages",), ("prompt_ids", "response_ids"))


def _object(properties: dict[str, Any], required: Sequence[str], **more: Any) -> dict[str, Any]:
    """The schema of an object that has no other keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


_NORMALISE = {"normalise": {"type": "boolean", "default": False}}
_ITEMS = [_object({key: _KEYS[key].schema for key in form}, form) for form in _FORMS]
_SINGLES = [_object({**item["properties"], **_NORMALISE}, item["required"]) for item in _ITEMS]
_ERROR = {"message": {"type": "string"}, "item": {"type": "integer", "minimum": 0}}
_SAID = {"normalised": {"type": "boolean"}, "model": {"type": "string"}}


def _answer(score: str, one: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The schema of an answer whose values ``one`` makes of the name of a type."""
    by_name = {"type": "object", "additionalProperties": one("number")}
    return _object(
        {score: one("number"), "truncated": one("boolean"), "objectives": by_name, **_SAID},
        (score, "truncated", *_SAID),
    )


SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "POST /score",
    "$defs": {
        "request": {
            "anyOf": [
                _object({"items": {"type": "array", "items": {"anyOf": _ITEMS}}, **_NORMALISE}, ("items",)),
                *_SINGLES,
            ]
        },
        "answer": {
            "anyOf": [
                _answer("scores", lambda kind: {"type": "array", "items": {"type": kind}}),
                _answer("score", lambda kind: {"type": kind}),
            ]
        },
        "error": _object({"error": _object(_ERROR, ("message",))}, ("error",)),
    },
}
"""Requests, answers and errors; ``GET /schema`` gives it."""


class Request(NamedTuple):
    """What is asked.

    Args:
        rows: one per item, as a file would hold it.
        normalise: whether scores are wanted in standard deviations from the mean of the validation data.
        is_single: whether the request was an item itself.
    """

    rows: list[Row]
    normalise: bool
    is_single: bool

    def answer(self, scored: Sequence[Scored], scores: Sequence[float], model: str) -> dict[str, Any]:
        """The answer to it.

        Args:
            scored: what became of the rows, each with one response.
            scores: of the rows, normalised where that is asked for.
            model: name of the model.
        """

        def shaped(values: Iterable[Any]) -> Any:
            return next(iter(values)) if self.is_single else list(values)

        answer = {
            "score" if self.is_single else "scores": shaped(scores),
            "truncated": shaped(bool(one.truncated) for one in scored),
            "normalised": self.normalise,
            "model": model,
        }
        names = list(scored[0].objectives) if scored else []
        if len(names) > 1:
            answer["objectives"] = {name: shaped(one.objectives[name][0] for one in scored) for name in names}
        return answer


def read_request(body: bytes, max_items: int) -> Request:
    """Read a request.

    Args:
        body: as it came.
        max_items: most items that it may have.

    Raises:
        RequestError: with status 400 for what is no such request, 413 for one of too many items.
    """
    asked = read_json(body)
    if not isinstance(asked, dict):
        refuse(f"the request is {kind_of(asked)}; it must be an object, with 'items' or with 'prompt' and 'response'")
    normalise = asked.pop("normalise", False)
    if not isinstance(normalise, bool):
        refuse(f"'normalise' is {kind_of(normalise)}; it must be true or false")
    if "items" not in asked:
        return Request([_row(asked, None)], normalise, is_single=True)
    items = asked.pop("items")
    if asked:
        refuse_key("the request", next(iter(asked)), ("items", "normalise"))
    if not isinstance(items, list):
        refuse(f"'items' is {kind_of(items)}; it must be a list")
    if len(items) > max_items:
        message = f"the request has {len(items)} items; at most {max_items} are taken at once"
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
    return Request([_row(item, number) for number, item in enumerate(items)], normalise, is_single=False)


def _row(item: object, number: int | None) -> Row:
    """The row that a file would hold for an item."""
    if not isinstance(item, dict):
        refuse(f"items[{number}] is {kind_of(item)}; it must be an object", item=number)
    where = "the request" if number is None else f"items[{number}]"
    for key, value in item.items():
        if key not in _KEYS:
            refuse_key(where, key, (*_KEYS, *(("items", "normalise") if number is None else ())), item=number)
        if not _KEYS[key].is_right(value):
            refuse(f"{key!r} of {where} is {kind_of(value)}; it must be {_KEYS[key].wanted}", item=number)
    if set(item) not in map(set, _FORMS):
        forms = ", or ".join(" and ".join(map(repr, form)) for form in _FORMS)
        found = ", ".join(map(repr, item)) or "nothing"
        refuse(f"{where} has {found}; it must have {forms}", item=number)
    if "prompt_ids" in item:
        prompt, response = item["prompt_ids"], item["response_ids"]
        item = {"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [1] * len(response)}
    return Row(where, "requests", item)
