"""Lines end between words, wherever the text was cut into pieces."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.commands.chatting.lines import Lines

WIDTH = 12


def seen(written: str) -> list[str]:
    """The lines of a terminal that understands what is written, without the spaces at their ends."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[K|\x08|\n|.", written):
        if part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif part == "\b":
            column -= 1
        elif part == "\n":
            lines, column = [*lines, ""], 0
        else:
            lines[-1], column = lines[-1][:column] + part, column + 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["one two three four"], ["one two", "three four"]),
        (["one", " two", " thr", "ee", " four"], ["one two", "three four"]),
        (["one two", " th", "r", "e", "e four"], ["one two", "three four"]),
        (["exactly", " fits"], ["exactly fits"]),
        (["exactly", " fits", "!"], ["exactly", "fits!"]),
        (["a\n\nb", " c\n"], ["a", "", "b c", ""]),
        (["a b", "cdefghijklmnop q"], ["a bcdefghijklmnop", "q"]),
        (["       indented"], ["", "indented"]),
        (["日本", "日本 日本日本"], ["日本日本", "日本日本"]),
    ],
)
def test_words_move_to_the_next_line(pieces, lines):
    flow = Lines(WIDTH)
    assert seen("".join(map(flow.add, pieces))) == lines


def test_a_label_takes_its_room():
    assert seen(Lines(WIDTH, column=6).add("one two three")) == ["one", "two three"]


@given(st.text("ab \n", max_size=80), st.lists(st.integers(0, 80)))
def test_no_line_is_too_long_and_no_word_is_lost(text, cuts):
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    flow = Lines(WIDTH)
    lines = seen("".join(flow.add(text[begin:end]) for begin, end in pairwise(places)))
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= WIDTH or " " not in line.strip() for line in lines)
    assert lines == seen(Lines(WIDTH).add(text))
