"""Values of rows, checked: each function returns the value in its one type, or refuses it in words."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from datamodules.records import BadRowError

_SHOWN = 40  # characters of a value that a message quotes
_MORE_DIGITS = 10**_SHOWN
_VERDICTS = {"true": True, "false": False, "1": True, "0": False}


def describe(value: object) -> str:
    """Say in a few words what a value is, however large or deep it is."""
    if value is None:
        return "null"
    kind = type(value).__name__
    if isinstance(value, str | list | dict) and not value:
        return f"an empty {kind}"
    if isinstance(value, int) and abs(value) > _MORE_DIGITS:
        return f"{kind} of more than {_SHOWN} digits"
    shown = value[:_SHOWN] if isinstance(value, str) else reprlib.repr(value)[:_SHOWN]
    return f"{kind} {shown!r}"


def wrong_type(where: str, value: object, wanted: str) -> BadRowError:
    """The error of a value that is not what it must be.

    Args:
        where: the place of the value in the row, such as ``'chosen'`` or ``messages[2]``.
        value: what was found there.
        wanted: what would be right.
    """
    return BadRowError("wrong_type", f"{where} is {describe(value)}; it must be {wanted}")


def read_text(where: str, value: object, wanted: str = "text") -> str:
    """Return a text.

    Raises:
        BadRowError: if it is none, or holds a lone surrogate, which no tokenizer can encode.
    """
    if not isinstance(value, str):
        raise wrong_type(where, value, wanted)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            message = f"{where} has a lone surrogate at character {error.start}, which is not text"
            raise BadRowError("bad_encoding", message) from None
    return value


def read_number(where: str, value: object) -> float:
    """Return a finite number, also from its text.

    Raises:
        BadRowError: if it is none.
    """
    error = wrong_type(where, value, "a finite number")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise error
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise error from None
    if not math.isfinite(number):
        raise error
    return number


def is_verdict(value: object) -> bool:
    """Whether a value says yes or no: true, false, 1, 0, or one of these as text."""
    if isinstance(value, str):
        return len(value) <= _SHOWN and value.strip().lower() in _VERDICTS
    return isinstance(value, int | float) and value in (0, 1)


def read_verdict(where: str, value: object) -> bool:
    """Return True or False.

    Raises:
        BadRowError: if the value says neither.
    """
    if not is_verdict(value):
        raise wrong_type(where, value, "true or false")
    return _VERDICTS[value.strip().lower()] if isinstance(value, str) else bool(value)


def read_list(where: str, value: object, wanted: str) -> list[Any]:
    """Return a list that is not empty.

    Raises:
        BadRowError: if it is none, or empty.
    """
    if not isinstance(value, list) or not value:
        raise wrong_type(where, value, wanted)
    return value


def read_json(where: str, value: object, wanted: str) -> Any:
    """Return what JSON text says; any other value as it is.

    Raises:
        BadRowError: if the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:  # besides broken JSON: a number of thousands of digits
        raise BadRowError("wrong_type", f"{where} is text but not JSON ({error}); it must be {wanted}") from None


def without_nulls(where: str, value: Any) -> Any:
    """Return a value without keys that are null, and with its texts checked.

    A column store gives every mapping the keys of all others, and fills the absent ones with null.

    Raises:
        BadRowError: if a text in it cannot be encoded.
    """
    if isinstance(value, str):
        return read_text(where, value)
    if isinstance(value, list):
        return [without_nulls(where, item) for item in value]
    if isinstance(value, Mapping):
        return {
            without_nulls(where, key): without_nulls(where, item) for key, item in value.items() if item is not None
        }
    return value
