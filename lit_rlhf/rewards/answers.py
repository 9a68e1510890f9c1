"""Answers inside texts: finding them, and telling whether two mean the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

_NUMBER = (
    r"(?<!\d)(?<!\d[,./eE])(?<!\d[eE][-+])"  # the end of 1,5 is no number, nor that of 1e500
    r"(?:(?<![\w).])[-+])?"  # a sign, but not the minus of 16-3
    r"(?:\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d{1,2})?"
    r"(?:\s?/\s?\d+(?:\.\d+)?)?"
    r"(?![,./]?\d|[eE][-+]?\d)"
)
_ANY_NUMBER = re.compile(_NUMBER)
_UNIT = r"(?:\s?[^\W\d_]+(?:\s[^\W\d_]+)?)?"  # up to two words
_ONE_NUMBER = re.compile(rf"{_NUMBER}{_UNIT}\.?")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_AFTER_WHOLE = re.compile(r"(?<=\d)(?=\\[dt]?frac)")
_MIXED = re.compile(r"(?<![\d.,/])(\d{1,9})\s+(\d{1,9})/(\d{1,9})(?![\d.,/]\d)")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_NO_MEANING = re.compile(r"\\[,!;: ]|\\(?:left|right)(?![a-z])|[$%\u20ac\u00a3\u00a5\u00b0\\]")
_LINE = re.compile(r"(?:^[ \t]*a[ \t]*:|\banswer(?:[ \t]+is)?[ \t]*[:=]|\banswer[ \t]+is\b)(.*)$", re.I | re.M)
_EDGES = " \t\n\"'`*.,;:!?()[]"


def _after_hashes(text: str) -> str | None:
    _, marks, rest = text.rpartition("####")
    return rest.split("\n")[0] if marks else None


def _boxed(text: str) -> str | None:
    _, mark, rest = text.rpartition("\\boxed{")
    depth = 1
    for at, letter in enumerate(rest if mark else ""):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[:at]
    return None


def _tagged(text: str) -> str | None:
    before, end, _ = text.rpartition("</answer>")
    _, start, inside = before.rpartition("<answer>")
    return inside if start and end else None


def _stated(text: str) -> str | None:
    lines = _LINE.findall(text.replace("**", ""))
    return lines[-1] if lines else None


def _last_number(text: str) -> str | None:
    numbers = _ANY_NUMBER.findall(_plain(text))
    return numbers[-1] if numbers else None


FINDERS: dict[str, Callable[[str], str | None]] = {
    "hash": _after_hashes,
    "boxed": _boxed,
    "tag": _tagged,
    "line": _stated,
    "number": _last_number,
    "whole": lambda text: text,
}
"""Where an answer may stand, the last such place counts: behind ``####`` (GSM8K), in LaTeX's ``\\boxed{}``, in
``<answer>`` tags, on a line ``A: 72`` or ``The answer is 72.``, the last number of the text, or all of it."""

_MARKED = ("hash", "boxed", "tag", "line")


def find_answer(text: str, places: Sequence[str]) -> str | None:
    """The answer that a text gives, by the first of the places that it has; None if it has none.

    Args:
        text: such as a response.
        places: names in :data:`FINDERS`.

    Example:
        >>> find_answer("2 + 2 = 4, so the answer is 4.", ["boxed", "line"])
        '4.'
    """
    found = (FINDERS[place](text) for place in places)
    return next((answer.strip() for answer in found if answer is not None), None)


def number_in(answer: str) -> Fraction | None:
    r"""The number that an answer is, or begins with behind its last ``=``; None if there is none.

    Commas between thousands, currency, percent, trailing zeros and units mean nothing: ``$1,250.00``, ``1250`` and
    ``1250 dollars`` are one number. So are ``0.5``, ``1/2`` and LaTeX's ``\frac{1}{2}``.

    Example:
        >>> number_in("$1,250.50 a day"), number_in("2 * 9 = 18 dollars"), number_in("many")
        (Fraction(2501, 2), Fraction(18, 1), None)
    """
    found = _ANY_NUMBER.search(_plain(answer).rpartition("=")[2])
    return _fraction(found[0]) if found else None


def is_number(answer: str) -> bool:
    """Whether an answer is a number alone, up to a unit behind it."""
    return _ONE_NUMBER.fullmatch(_plain(answer).strip()) is not None


def plain_text(answer: str) -> str:
    """An answer without what does not matter in words: case, spaces, punctuation around it, LaTeX around it.

    Example:
        >>> plain_text(" **(B)**. "), plain_text("New   York!")
        ('b', 'new york')
    """
    return " ".join(_plain(answer).split()).strip(_EDGES).casefold()


def same_answer(response: str, reference: str, *, compare: str, places: Sequence[str], tolerance: float) -> bool:
    """Whether a response gives the right answer.

    Args:
        response: the text that is searched for an answer.
        reference: the right answer, or a worked solution in which it is marked.
        compare: "number", "text", or "auto", which compares numbers where the right answer is one.
        places: where the answer stands; none = every marked place, then the last number, or the whole text.
        tolerance: largest difference of two equal numbers, as a share of the right one.
    """
    right = find_answer(reference, (*_MARKED, "whole")) or ""
    if compare == "number" or (compare == "auto" and is_number(right)):
        found, wanted = find_answer(response, places or (*_MARKED, "number")), number_in(right)
        given = None if found is None else number_in(found)
        return given is not None and wanted is not None and abs(given - wanted) <= tolerance * abs(wanted)
    answer = find_answer(response, places or (*_MARKED, "whole"))
    return answer is not None and plain_text(answer) == plain_text(right)


def _plain(text: str) -> str:
    """Text without LaTeX, currency and percent signs; fractions as a/b."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("{,}", ",")
    text = _FRACTION.sub(r"\1/\2", _AFTER_WHOLE.sub(" ", _WRAPPED.sub(r" \1 ", text)))
    return _MIXED.sub(_improper, _NO_MEANING.sub("", text))


def _improper(mixed: re.Match[str]) -> str:
    """2 1/2 as 5/2."""
    whole, above, below = map(int, mixed.groups())
    return f"{whole * below + above}/{below}"


def _fraction(number: str) -> Fraction | None:
    above, _, below = number.replace(",", "").replace(" ", "").partition("/")
    try:
        return Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):  # also more digits than Python reads
        return None
