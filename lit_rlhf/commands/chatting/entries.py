r"""What a person types: messages of one line or several, and commands.

A line that ends in a backslash goes on in the next one. Between two lines of three quotation marks anything is text,
also lines that begin with a slash.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

QUOTES = '"""'


class Entry(NamedTuple):
    """Something that was typed.

    Args:
        text: a message, or what follows the name of a command.
        command: its name without the slash; None for a message.
    """

    text: str
    command: str | None = None


def read_entries(read_line: Callable[[bool], str]) -> Iterator[Entry]:
    """Entries until the lines end; empty ones are passed over.

    Args:
        read_line: gives the next line, and raises EOFError after the last; it is told whether an entry goes on.
    """
    while True:
        try:
            line = read_line(False)
        except EOFError:
            return
        lines, is_block = [line], line.lstrip().startswith(QUOTES)
        while _goes_on(lines, is_block):
            try:
                lines.append(read_line(True))
            except EOFError:
                break
        if entry := _entry(lines, is_block):
            yield entry


def nearest(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not known.

    Example:
        >>> nearest("hlep", ["help", "new"])
        'did you mean help?'
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _goes_on(lines: list[str], is_block: bool) -> bool:
    if is_block:
        return not (lines[-1].rstrip().endswith(QUOTES) and (len(lines) > 1 or lines[0].strip() != QUOTES))
    return lines[-1].endswith("\\")


def _entry(lines: list[str], is_block: bool) -> Entry | None:
    if is_block:
        text = "\n".join(lines).strip().removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
        return Entry(text) if text.strip() else None
    text = "\n".join(line.removesuffix("\\") for line in lines).strip()
    if text.startswith("/"):
        name, _, rest = text[1:].partition(" ")
        return Entry(rest.strip(), name)
    return Entry(text) if text else None
