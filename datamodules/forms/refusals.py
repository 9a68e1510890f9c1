"""What is said about a row of no known form: the columns that were found, and the form that it is nearest to."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from datamodules.forms.fields import Fields, nearest
from datamodules.records import BadRowError

Names = tuple[str, ...]
_KEYS_COMPARED = 50  # comparing words is slow, and a row may have any number of columns


class Shape(NamedTuple):
    """What is known of a form before any value is looked at.

    Args:
        name: what the form is called.
        needs: its columns, each by its names, of which a row has one.
        wants: its condition in words; empty if it has none.
    """

    name: str
    needs: tuple[Names, ...]
    wants: str


def refusal(fields: Fields, shapes: tuple[Shape, ...]) -> BadRowError:
    """The error of a row that no form reads.

    Args:
        fields: the row.
        shapes: the forms that come into question.
    """
    found = f"(keys found: {fields.found})"
    shape, slips = _nearest_shape(frozenset(fields.values), shapes)
    if shape is None:
        return BadRowError("unknown_form", f"no form is known by these columns {found}; name them by `columns`")
    missing = [names for names in shape.needs if fields.first(*names) is None]
    if not missing:
        return BadRowError("unknown_form", f"{shape.name!r} is the nearest form, but it needs {shape.wants} {found}")
    lacks = " and no ".join(" or ".join(map(repr, names[:3])) for names in missing)
    meant = "".join(
        f"; did you mean {slips[name]!r} by {name!r}?" for name in sorted(slips) if _wants(missing, slips[name])
    )
    return BadRowError(
        "missing_key", f"row has no {lacks} {found}, which the nearest form, {shape.name!r}, needs{meant}"
    )


@lru_cache(maxsize=64)
def _nearest_shape(keys: frozenset[str], shapes: tuple[Shape, ...]) -> tuple[Shape | None, dict[str, str]]:
    """The shape that the most columns speak for, and what unknown columns may be misspellings of.

    Kept, because files whose rows are all refused would cost much more than those that are read.
    """
    known = sorted({name for shape in shapes for names in shape.needs for name in names})
    slips = {key: near for key in sorted(keys.difference(known))[:_KEYS_COMPARED] if (near := nearest(key, known))}
    # A misspelled column counts less than a right one, and a form with a condition less than one without.
    scores = [
        _share(shape, keys) + 0.9 * _share(shape, frozenset(slips.values())) - 0.01 * bool(shape.wants)
        for shape in shapes
    ]
    best = max(scores)
    return (shapes[scores.index(best)] if best > 0 else None), slips


def _share(shape: Shape, keys: frozenset[str]) -> float:
    """Share of the columns of a shape that are among ``keys``."""
    return sum(not keys.isdisjoint(names) for names in shape.needs) / len(shape.needs)


def _wants(missing: list[Names], name: str) -> bool:
    return any(name in names for names in missing)
