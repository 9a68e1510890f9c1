"""Streamed text in lines that end between words: a word that turns out too long for its line moves to the next one."""

from __future__ import annotations

import re

from rich.cells import cell_len

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
_BACK, _CLEAR = "\b", "\x1b[K"
"""Moves the cursor one cell to the left, and clears the line from the cursor on."""


class Lines:
    """Where the cursor of a terminal stands, and the word that it stands in.

    Args:
        width: cells of a line.
        column: cells that are taken already.
    """

    def __init__(self, width: int, column: int = 0) -> None:
        self.width = width
        self._column = column
        self._word = ""

    def add(self, text: str) -> str:
        """What to write for a piece of text: itself, with what takes the cursor to the next line where a word must.

        A word that no line holds is left to the terminal, as is text without spaces.
        """
        return "".join(map(self._added, _PARTS.findall(text)))

    def _added(self, part: str) -> str:
        if part == "\n" or part.isspace():
            self._word = ""
            self._column = 0 if part == "\n" else self._column + cell_len(part.expandtabs(8))
            return part
        written, self._word = self._word, self._word + part
        cells = cell_len(self._word)
        begin = self._column - cell_len(written)
        self._column = begin + cells
        if self._column <= self.width or begin == 0 or cells > self.width:
            return part
        self._column = cells
        return f"{_BACK * cell_len(written)}{_CLEAR}\n{self._word}"
