"""How good the responses of a row are, by one or several objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.forms.values import read_number, wrong_type
from datamodules.records import Record, Response


def grades_of(record: Record, objectives: Sequence[str]) -> list[list[float]]:
    """Look up the grades of every response.

    What the row says of one answer beside its text comes first; then, for the objective ``score``, the score that its
    form knows; then the column of that name, which holds one number for each answer, in the order of the row. A dot
    leads into a mapping: ``annotations.helpfulness.Rating``.

    Args:
        record: with any number of responses.
        objectives: names of K objectives.

    Returns:
        K numbers for each response, in the order of the record; NaN where unknown.

    Raises:
        BadRowError: if a grade is no finite number, or a column does not hold one for each response.

    Example:
        >>> from datamodules.forms import read_row
        >>> (record,) = read_row({"prompt": "Hi", "response": "Hello", "helpfulness": 4, "verbosity": None})
        >>> grades_of(record, ["helpfulness", "verbosity"])
        [[4.0, nan]]
    """
    by_objective = [_grades(record, name) for name in objectives]
    return [[grades[number] for grades in by_objective] for number in range(len(record.responses))]


def _grades(record: Record, name: str) -> list[float]:
    column = _looked_up(record.columns, name)
    shared = [] if column is None else _per_answer(name, column, len(record.responses))
    return [_grade(response, name, shared) for response in record.responses]


def _grade(response: Response, name: str, shared: Sequence[Any]) -> float:
    own = _looked_up(response.columns, name)
    if own is not None:
        return _number(f"{name!r} of answer {response.number}", own)
    if name == "score" and response.score is not None:
        return response.score
    return _number(f"{name}[{response.number}]", shared[response.number]) if shared else math.nan


def _per_answer(name: str, column: Any, num_responses: int) -> list[Any]:
    """One value for each answer; that of a single one may stand alone."""
    if num_responses == 1 and not isinstance(column, list):
        return [column]
    if not isinstance(column, list) or len(column) != num_responses:
        raise wrong_type(repr(name), column, f"a list of one number for each of the {num_responses} answers")
    return column


def _number(where: str, value: Any) -> float:
    if value is None:
        return math.nan
    return float(value) if isinstance(value, bool) else read_number(where, value)


def _looked_up(columns: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or inside of one; None if there is none."""
    if name in columns:
        return columns[name]
    value: Any = columns
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
