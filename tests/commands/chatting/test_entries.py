"""What is typed: lines that go on, blocks, commands, and what a name may have meant."""

from __future__ import annotations

import pytest

from lit_rlhf.commands.chatting.entries import Entry, nearest, read_entries


def entries(*lines):
    waiting, asked = iter(lines), []

    def read_line(goes_on):
        asked.append(goes_on)
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    return list(read_entries(read_line)), asked


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["hello", "", "  ", " there "], [Entry("hello"), Entry("there")]),
        (["one\\", "two\\", "three"], [Entry("one\ntwo\nthree")]),
        (["cut off\\"], [Entry("cut off")]),
        (['"""', "/not a command", "", "two", '"""', "next"], [Entry("/not a command\n\ntwo"), Entry("next")]),
        (['"""begins', 'ends"""'], [Entry("begins\nends")]),
        (['"""one line"""', "next"], [Entry("one line"), Entry("next")]),
        (['"""', '"""', "next"], [Entry("next")]),
        (['"""', "never ends"], [Entry("never ends")]),
        (["/use dpo", "/help"], [Entry("dpo", "use"), Entry("", "help")]),
        (["/system  Be brief. "], [Entry("Be brief.", "system")]),
        (["/system Be brief.\\", "Be kind."], [Entry("Be brief.\nBe kind.", "system")]),
        (["/"], [Entry("", "")]),
    ],
)  # fmt: skip
def test_entries(lines, expected):
    assert entries(*lines)[0] == expected


def test_the_reader_knows_whether_an_entry_goes_on():
    assert entries("one\\", "two", '"""', "x", '"""')[1] == [False, True, False, True, True, False]


def test_a_name_that_is_not_known():
    assert nearest("copmare", ["help", "compare"]) == "did you mean compare?"
    assert nearest("zzz", ["help", "compare"]) == "there are help, compare"
