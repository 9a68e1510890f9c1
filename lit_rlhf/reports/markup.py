"""HTML that cannot be broken by what stands in it: every text is escaped unless it was made here."""

from __future__ import annotations

import re
from html import escape

_VOID = ("meta", "br")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters that HTML does not allow: controls but tab and newline, halves of characters, and those that are none."""

_NUMBER = re.compile(r"[-+]?([\d.,]+(e[-+]?\d+)?( ?[%A-Za-z]{1,3})?|inf|nan)|-")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def el(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        children: what stands in it; texts are escaped, None is left out.
        attributes: ``class_`` is written ``class`` and ``aria_label`` ``aria-label``; None is left out.

    Example:
        >>> el("p", "1 < 2", el("b", "!"), class_="note")
        '<p class="note">1 &lt; 2<b>!</b></p>'
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{clean(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{words}>" if name in _VOID else f"<{name}{words}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Elements and texts behind one another; texts are escaped, None is left out."""
    known = (child for child in children if child is not None)
    return Html("".join(child if isinstance(child, Html) else clean(str(child)) for child in known))


def clean(text: str) -> str:
    """A text as it may stand between tags and in attributes; what may stand nowhere is shown as a sign for that."""
    return escape(_UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")))


def prose(text: str) -> Html:
    """A sentence in which what stands between backticks is code."""
    return join(*(el("code", part) if at % 2 else part for at, part in enumerate(text.split("`"))))


def table(head: list[object], rows: list[list[object]], caption: str | None = None) -> Html:
    """A table that scrolls by itself where the screen is too narrow. Columns of numbers stand at the right.

    Args:
        head: of the columns.
        rows: cells, at least one row; the first of each names it.
        caption: what it shows, for those who do not see it.
    """
    columns = list(zip(*rows, strict=True))
    sides = ["number" if at and all(map(_is_number, column)) else None for at, column in enumerate(columns)]
    top = el("tr", *(el("th", cell, scope="col", class_=side) for cell, side in zip(head, sides, strict=True)))
    body = (
        el(
            "tr",
            el("th", row[0], scope="row", class_=sides[0]),
            *(el("td", cell, class_=side) for cell, side in zip(row[1:], sides[1:], strict=True)),
        )
        for row in rows
    )
    shown = el("caption", caption) if caption else None
    whole = el("table", shown, el("thead", top), el("tbody", *body))
    return el("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption or "table")


def _is_number(cell: object) -> bool:
    return _NUMBER.fullmatch(str(cell)) is not None
