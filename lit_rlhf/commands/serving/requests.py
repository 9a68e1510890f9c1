"""What comes in a request, and what is said where it is wrong."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NoReturn


class RequestError(Exception):
    """A request that is not answered as it wished.

    Args:
        status: of the answer.
        message: what is wrong and what would be right.
        headers: further headers of the answer.
        **details: what else is said of it, such as the number of the item that is at fault; None is left out.
    """

    def __init__(
        self, status: HTTPStatus, message: str, *, headers: Mapping[str, str] | None = None, **details: Any
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.details = {name: value for name, value in details.items() if value is not None}


class BusyError(Exception):
    """Too many requests wait already."""


def read_json(body: bytes) -> Any:
    """The value that a body holds.

    Raises:
        RequestError: with status 400, if it is not JSON.
    """
    try:
        return json.loads(body.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        refuse(f"the body is not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        refuse(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        refuse("the body is nested too deeply")
    except ValueError as error:  # a constant that JSON lacks, or a number of thousands of digits
        refuse(f"the body is not JSON: {error}")


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def refuse_key(where: str, key: str, known: Sequence[str], **details: Any) -> NoReturn:
    """Refuse a key that nobody knows, and name the one that may be meant.

    Args:
        where: it stands.
        key: that is not known.
        known: those that are.
        **details: of the refusal.
    """
    near = difflib.get_close_matches(key[:60], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; keys are {', '.join(known)}"
    refuse(f"{where} has the unknown key {key[:60]!r}{hint}", **details)


def refuse(message: str, **details: Any) -> NoReturn:
    """Refuse a request.

    Args:
        message: what is wrong and what would be right.
        **details: of the refusal.
    """
    raise RequestError(HTTPStatus.BAD_REQUEST, message, **details)


def kind_of(value: object) -> str:
    """A value in a message: by its type where it may be long."""
    if isinstance(value, str) and value:
        return "a text"
    if isinstance(value, list) and value:
        return "a list of something else"
    return "an object" if isinstance(value, dict) else json.dumps(value)[:40]
