"""Markup: nothing that stands in it can break it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.reports.markup import clean, el, join, prose, table


class Read(HTMLParser):
    """What a reader of the markup finds."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@given(text=st.text(), attribute=st.text())
def test_any_text_stays_text(text, attribute):
    found = Read(el("p", text, title=attribute))
    assert found.tags == ["p"]
    assert [name for name, _ in found.attributes] == ["title"]
    assert found.text == Read(clean(text)).text


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img onerror=x>', "a & b", "</style>", "'"])
def test_what_looks_like_markup_is_shown(text):
    found = Read(el("p", text, title=text))
    assert (found.tags, found.text, found.attributes) == (["p"], text, [("title", text)])


def test_characters_that_may_stand_nowhere_are_shown_as_such():
    assert clean("a\x00b\x1b[31m\ud800c\r\nd\te") == "a\ufffdb\ufffd[31m\ufffdc\nd\te"
    clean("".join(map(chr, range(0x10000)))).encode()


def test_elements_inside_elements_and_what_is_left_out():
    assert el("p", el("b", 1), None, "<", class_="x", aria_label=None) == '<p class="x"><b>1</b>&lt;</p>'
    assert el("meta", http_equiv="x") == '<meta http-equiv="x">'
    assert join("<", None, el("br")) == "&lt;<br>"


def test_code_in_prose():
    assert prose("see `a<b` there") == "see <code>a&lt;b</code> there"


def test_columns_of_numbers_stand_at_the_right():
    rows = [["a", "1.5", "word", "-"], ["b", "1,200", "2", "3 %"]]
    shown = table(["name", "numbers", "words", "some"], rows, "what it is")
    assert shown.count('<td class="number">') == 4
    assert '<th scope="col" class="number">numbers</th><th scope="col">words</th>' in shown
    assert "<caption>what it is</caption>" in shown
    assert '<th scope="row">b</th>' in shown
