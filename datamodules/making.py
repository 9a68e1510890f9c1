"""Rows to the batch of one step: read, tokenised and cut. What is lost on the way is counted and said.

A :class:`Task` is what one kind of training wants of a row; the data modules bring one each.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from datamodules.encoding.truncation import TooLongError
from datamodules.forms import read_row
from datamodules.records import BadRowError, Record
from datamodules.sources import Row
from lit_rlhf.types import Cursor

OnBadRow = Literal["raise", "drop"]

R = TypeVar("R")
T = TypeVar("T")
B_co = TypeVar("B_co", covariant=True)


class Outcome(NamedTuple):
    """What became of a row, or of one of the examples in it.

    Args:
        row: as it was read.
        record: what it says; None if it could not be read.
        whole: tokens of the example, before anything is cut.
        tokens: of the example, cut to length; None if it is lost.
        error: why it is lost.
    """

    row: Row
    record: Record | None = None
    whole: Any = None
    tokens: Any = None
    error: BadRowError | None = None


class Task(Protocol[R, T, B_co]):
    """What one kind of training makes of records."""

    def render(self, record: Record) -> R:
        """Write the texts to be tokenised; BadRowError if the record does not serve."""
        ...

    def encode(self, rendered: Sequence[R]) -> list[T]:
        """Tokenise, all at once. Nothing is cut."""
        ...

    def fit(self, tokens: T) -> T:
        """Cut to length; BadRowError or TooLongError if that cannot be. ``truncated`` of the result says what was.

        Its ``dropped`` says why parts of the row are left out, and its ``pictures`` are those that the model sees.
        """
        ...

    def lengths(self, tokens: T) -> dict[str, int]:
        """Count the tokens of each part of an example, by name."""
        ...

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> B_co:
        """Make the batch of the examples that are left."""
        ...


@dataclass(frozen=True)
class BatchMaker(Generic[R, T, B_co]):
    """Makes the batch of one step from its rows.

    Args:
        task: what the rows are for.
        on_bad_row: ``raise`` stops at a row that cannot be used; ``drop`` counts it and goes on.
        name_sources: whether counts are kept apart by source.
        warned: reasons that were warned of; each is told once, with the first row.
    """

    task: Task[R, T, B_co]
    on_bad_row: OnBadRow = "raise"
    name_sources: bool = False
    warned: set[str] = field(default_factory=set)

    def __call__(self, rows: Sequence[Row], cursor: Cursor) -> B_co:
        """Make the batch of ``rows``.

        Args:
            rows: of one rank and one step.
            cursor: where the stream goes on after them.

        Raises:
            ValueError: naming the address of a bad row, unless bad rows are dropped.
        """
        notes: Counter[str] = Counter()
        examples = []
        for outcome in self.outcomes(rows):
            if outcome.error is not None:
                self._lose(outcome.row, outcome.error, notes)
                continue
            examples.append(outcome)
            if cut := "_and_".join(outcome.tokens.truncated):
                notes[self._key("truncated", cut, outcome.row)] += 1
            notes.update(self._key("ignored", reason, outcome.row) for reason in outcome.tokens.dropped)
            self._note_pictures(outcome, notes)
        return self.task.pack(examples, notes, cursor)

    def outcomes(self, rows: Sequence[Row]) -> list[Outcome]:
        """What becomes of each row, in order; a row that holds several examples has several outcomes.

        Raises:
            ValueError: for what no other row would mend, such as a missing chat template; with the row's address.
            RuntimeError: for what should not happen, with the row's address.
        """
        read: list[tuple[Outcome, R | None]] = []
        for row in rows:
            read += self._read(row)
        tokens = iter(self._encode([(outcome.row, rendered) for outcome, rendered in read if rendered is not None]))
        return [outcome if rendered is None else self._fit(outcome, next(tokens)) for outcome, rendered in read]

    def _read(self, row: Row) -> list[tuple[Outcome, R | None]]:
        """Outcomes of a row so far, each with its texts unless it is lost."""
        try:
            with _address(row):
                records = read_row(row.decode(), row.layout)
        except BadRowError as error:
            return [(Outcome(row, error=error), None)]
        return [self._render(row, record) for record in records]

    def _render(self, row: Row, record: Record) -> tuple[Outcome, R | None]:
        try:
            with _address(row):
                return Outcome(row, record), self.task.render(record)
        except BadRowError as error:
            return Outcome(row, record, error=error), None

    def _encode(self, rendered: Sequence[tuple[Row, R]]) -> list[T | BadRowError]:
        """Tokenise all at once, or one by one where that fails, to learn which row it is."""
        try:
            return list(self.task.encode([texts for _, texts in rendered]))
        except Exception:  # whatever it is, it is raised again below, with an address
            return [self._encode_one(row, texts) for row, texts in rendered]

    def _encode_one(self, row: Row, texts: R) -> T | BadRowError:
        try:
            with _address(row):
                return self.task.encode([texts])[0]
        except BadRowError as error:
            return error

    def _fit(self, outcome: Outcome, tokens: T | BadRowError) -> Outcome:
        if isinstance(tokens, BadRowError):
            return outcome._replace(error=tokens)
        outcome = outcome._replace(whole=tokens)
        try:
            with _address(outcome.row):
                return outcome._replace(tokens=self.task.fit(tokens))
        except BadRowError as error:
            return outcome._replace(error=error)

    def _lose(self, row: Row, error: BadRowError, notes: Counter[str]) -> None:
        message = f"{row.address}: {error}"
        if isinstance(error, TooLongError):
            self._warn(error.reason, f"dropped {message}; others like it will be counted")
        elif self.on_bad_row == "raise":
            raise ValueError(
                f"{message}; mend the row, or set data.on_bad_row=drop to drop and count such rows"
            ) from None
        notes[self._key("dropped", error.reason, row)] += 1

    def _note_pictures(self, outcome: Outcome, notes: Counter[str]) -> None:
        """Count the rows whose pictures are left out, and the pictures of which only the first frame is seen."""
        row, seen = outcome.row, outcome.tokens.pictures
        if outcome.record is not None and outcome.record.images and not seen:
            self._warn("images", f"{row.address}: its pictures are not seen, as data.images=ignore says")
            notes[self._key("ignored", "images", row)] += 1
        if num_moving := sum(picture.is_moving for picture in seen):
            self._warn("frames", f"{row.address}: a picture moves, and only its first frame is seen")
            notes[self._key("ignored", "frames", row)] += num_moving

    def _warn(self, reason: str, message: str) -> None:
        if reason not in self.warned:
            warnings.warn(message, stacklevel=2)
        self.warned.add(reason)

    def _key(self, what: str, reason: str, row: Row) -> str:
        return f"{what}/{reason}/{row.source}" if self.name_sources else f"{what}/{reason}"


@contextmanager
def _address(row: Row) -> Iterator[None]:
    """Name the row in whatever goes wrong inside."""
    try:
        yield
    except BadRowError:
        raise
    except RecursionError:
        raise BadRowError("too_deep", "the row is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{row.address}: {error}") from None
    except Exception as error:
        raise RuntimeError(f"{row.address}: {type(error).__name__}: {error}") from error
