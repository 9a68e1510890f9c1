"""What is said about a row of no known form: the columns that were found, and the form that it is nearest to."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.forms.fields import Fields, nearest
from datamodules.records import BadRowError

Names = tuple[str, ...]
_KEYS_COMPARED = 50  # comparing words is slow, and a row may have any number of columns


def refusal(fields: Fields, shapes: Sequence[tuple[str, Sequence[Names], str]]) -> BadRowError:
    """The error of a row that no form reads.

    Args:
        fields: the row.
        shapes: name, columns (each by its names) and condition in words of each form that comes into question.
    """
    found = f"(keys found: {fields.found})"
    known = {name for _, needs, _ in shapes for names in needs for name in names}
    unknown = [key for key in fields.values if key not in known][:_KEYS_COMPARED]
    scored = [
        (_closeness(fields, needs, unknown) - 0.01 * bool(wants), name, needs, wants) for name, needs, wants in shapes
    ]
    closeness, name, needs, wants = max(scored, key=lambda shape: shape[0])
    if closeness <= 0:
        return BadRowError("unknown_form", f"no form is known by these columns {found}; name them by `columns`")
    missing = [names for names in needs if fields.first(*names) is None]
    if not missing:
        return BadRowError("unknown_form", f"{name!r} is the nearest form, but it needs {wants} {found}")
    slips = [f"; did you mean {names[0]!r} by {near!r}?" for names in missing if (near := _slip(unknown, names))]
    lacks = " and no ".join(" or ".join(map(repr, names[:3])) for names in missing)
    return BadRowError(
        "missing_key", f"row has no {lacks} {found}, which the nearest form, {name!r}, needs{''.join(slips)}"
    )


def _closeness(fields: Fields, needs: Sequence[Names], unknown: list[str]) -> float:
    """Share of the columns that the row has, where a misspelled one counts a little less."""
    return sum(1.0 if fields.first(*names) else 0.9 * bool(_slip(unknown, names)) for names in needs) / len(needs)


def _slip(unknown: list[str], names: Names) -> str | None:
    """The column of an unknown name that may be one of ``names`` misspelled."""
    return next((near for name in names if (near := nearest(name, unknown))), None)
