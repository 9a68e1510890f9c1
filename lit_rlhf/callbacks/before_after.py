"""Answers before and after training, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

_LONGEST = 240
"""Letters of a text that are shown."""

Answer = tuple[str, float | None]
"""A text, and its score where it has one."""


def before_after(
    prompts: Sequence[str], before: Sequence[Answer], after: Sequence[Answer], moments: tuple[str, str]
) -> Table:
    """A table of prompts, first answers and last ones, each behind its score; brackets in texts are no markup.

    Args:
        prompts: that were answered.
        before: first answers, one per prompt.
        after: last ones, one per prompt.
        moments: when the first and the last ones were given.
    """
    table = _table(["prompt", f"before ({moments[0]})", f"after ({moments[1]})"])
    table.columns[0].style, table.columns[2].style = "dim", "green"
    for prompt, *answers in zip(prompts, before, after, strict=True):
        table.add_row(*map(Text, (shorten(prompt, keep_end=True), *map(_scored, answers))))
    return table


def answers(prompts: Sequence[str], given: Sequence[Answer], moment: str) -> Table:
    """A table of prompts and their answers at one moment, a few lines each.

    Args:
        prompts: that were answered.
        given: answers, one per prompt.
        moment: when they were given.
    """
    table = _table(["prompt", f"answer ({moment})"])
    table.columns[0].style = "dim"
    for prompt, answer in zip(prompts, given, strict=True):
        table.add_row(Text(shorten(prompt, 60, keep_end=True)), Text(shorten(_scored(answer), 120)))
    return table


def shorten(text: str, length: int = _LONGEST, keep_end: bool = False) -> str:
    """The beginning of a text, or its end, with dots where something is left out."""
    if len(text) <= length:
        return text
    return "... " + text[-length:] if keep_end else text[:length] + " ..."


def _table(columns: Sequence[str]) -> Table:
    title = "Answers to held-out prompts"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, ratio=1)
    return table


def _scored(answer: Answer) -> str:
    text, score = answer
    said = shorten(text) if text.strip() else "(empty)"
    return said if score is None else f"[{score:.3g}] {said}"
