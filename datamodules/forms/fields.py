"""One row as the forms see it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from datamodules.forms.messages import TAGS, read_turns
from datamodules.forms.values import read_number, read_text, wrong_type
from datamodules.records import BadRowError, Layout, Text

_KEYS_SHOWN = 30
USUAL = Layout()


class Fields:
    """The columns of a row under their usual names; null counts as absent.

    It remembers which columns went into the prompt and the options: all others reach the reward function.

    Args:
        row: one decoded row.
        layout: how its source departs from the usual names.

    Raises:
        BadRowError: if the row is not a mapping of names to values, or lacks a column that the layout names.
        ValueError: if the layout has an unknown tag.
    """

    def __init__(self, row: object, layout: Layout = USUAL) -> None:
        if not isinstance(row, Mapping):
            raise wrong_type("a row", row, "a mapping of keys to values")
        for key in row:
            read_text("a key of the row", key)
        self.found = shown_keys(row)
        self.values = {key: value for key, value in _renamed(row, layout).items() if value is not None}
        self.tags = _checked(layout.tags)
        self.folder = layout.folder
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str) -> Any:
        """The value of a column, None if it is absent."""
        return self.values.get(name)

    def first(self, *names: str) -> str | None:
        """The first of ``names`` that the row has."""
        return next((name for name in names if name in self.values), None)

    def ask(self, *names: str) -> str | None:
        """Like :meth:`first`, for a column that is part of the prompt or an option."""
        name = self.first(*names)
        if name:
            self.used.add(name)
        return name

    def text(self, name: str) -> str:
        """A column that must be text."""
        return read_text(repr(name), self.values[name])

    def words(self, name: str) -> Text:
        """A column that must be text or messages."""
        return read_words(name, self.values[name], self.tags)

    def number(self, *names: str) -> float | None:
        """The first of ``names`` that the row has, which must be a number; None if it has none."""
        name = self.first(*names)
        return None if name is None else read_number(repr(name), self.values[name])


def read_words(where: str, value: object, tags: Mapping[str, str]) -> Text:
    """Return a text as it is; a message, or a list of messages, as normalised messages.

    Raises:
        BadRowError: if it is neither.
    """
    if isinstance(value, str):
        return read_text(repr(where), value)
    if isinstance(value, Mapping) and value:
        return read_turns(where, [value], tags)
    if isinstance(value, list) and value:
        return read_turns(where, value, tags)
    raise wrong_type(repr(where), value, "text or a list of messages")


def shown_keys(row: Mapping[str, Any]) -> str:
    """List the keys of a row for a message; those that are null are marked."""
    shown = [f"{key[:40]!r}{' (null)' if value is None else ''}" for key, value in row.items()]
    more = [f"and {len(shown) - _KEYS_SHOWN} more"] if len(shown) > _KEYS_SHOWN else []
    return ", ".join(shown[:_KEYS_SHOWN] + more) or "none"


def nearest(word: str, known: list[str]) -> str | None:
    """The one of ``known`` that ``word`` may be a misspelling of."""
    by_start = {name[:60]: name for name in known}
    return next((by_start[near] for near in difflib.get_close_matches(word[:60], by_start, n=1, cutoff=0.75)), None)


def _renamed(row: Mapping[str, Any], layout: Layout) -> Mapping[str, Any]:
    if not layout.columns:
        return row
    for usual, own in layout.columns.items():
        if own not in row:
            near = nearest(own, list(row))
            hint = f"; did you mean {near!r}?" if near else ""
            raise BadRowError(
                "missing_key", f"row has no {own!r}, which columns.{usual} names (keys found: {shown_keys(row)}){hint}"
            )
    moved = set(layout.columns.values())
    kept = {key: value for key, value in row.items() if key not in moved}
    return kept | {usual: row[own] for usual, own in layout.columns.items()}


def _checked(tags: Mapping[str, str]) -> Mapping[str, str]:
    for tag in tags:
        if tag not in TAGS:
            raise ValueError(f"tags has {tag!r}; known tags are {', '.join(TAGS)}")
    return tags
