"""Answers side by side."""

from __future__ import annotations

import io
import re

from rich.console import Console

from lit_rlhf.callbacks.before_after import answers, before_after, shorten


def rows(table):
    """The cells of the printed table, line by line, without its rules."""
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    lines = [re.split(r"  +", line.strip()) for line in out.getvalue().splitlines()]
    return [cells for cells in lines if len(cells) > 1]


def test_before_and_after():
    table = before_after(["Say hello"], [("No.", -0.5)], [("Hello!", 1.25)], ("step 0", "step 9"))
    assert rows(table) == [
        ["prompt", "before (step 0)", "after (step 9)"],
        ["Say hello", "[-0.5] No.", "[1.25] Hello!"],
    ]
    assert rows(before_after(["Hi"], [("No.", None)], [("Yes.", None)], ("a", "b")))[1] == ["Hi", "No.", "Yes."]
    assert rows(before_after(["Hi"], [("", None)], [("\n", 0.5)], ("a", "b")))[1] == ["Hi", "(empty)", "[0.5] (empty)"]


def test_what_looks_like_markup_is_shown_as_it_is():
    table = before_after(["[/INST]"], [("[bold] move", None)], [("[/red]", 0.0)], ("a", "b"))
    assert rows(table)[1] == ["[/INST]", "[bold] move", "[0] [/red]"]


def test_answers_of_one_moment():
    table = answers(["[/INST]"], [("[/red] Hello!", 0.123456)], "iteration 3")
    assert rows(table) == [["prompt", "answer (iteration 3)"], ["[/INST]", "[0.123] [/red] Hello!"]]


def test_long_texts():
    assert shorten("abcdef", 3) == "abc ..."
    assert shorten("abcdef", 3, keep_end=True) == "... def"
    assert shorten("abc", 3) == "abc"
