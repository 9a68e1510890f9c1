"""The page itself: whole, closed to the outside, and what it says is what was given."""

from __future__ import annotations

import base64
import hashlib
import re

from lit_rlhf.reports.markup import el
from lit_rlhf.reports.page import Section, page, write

PAGE = page("a < b", el("header", el("h1", "Title")), [Section("First part", "see `x`", el("p", "body"))])


def test_sections_are_linked():
    assert '<a href="#first-part">First part</a>' in PAGE
    assert (
        '<section id="first-part"><h2>First part</h2><p class="lead">see <code>x</code></p><p>body</p></section>'
        in PAGE
    )
    assert "<title>a &lt; b</title>" in PAGE
    assert PAGE.startswith("<!doctype html>\n<html")


def test_the_policy_lets_nothing_in_but_its_own_style_and_script():
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', PAGE)
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#x27;", "'").split("; "))
    for kind in ("style", "script"):
        (source,) = re.findall(f"<{kind}>(.*?)</{kind}>", PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}


def test_nothing_comes_from_elsewhere():
    assert set(re.findall(r"\w+://[^\s\"')]+", PAGE)) == {"http://www.w3.org/2000/svg"}, "the name of SVG, no address"
    assert not re.search(r"@import|url\(|<link|<img|<iframe|style=|fetch\(|XMLHttpRequest", PAGE)


def test_written_whole_or_not_at_all(tmp_path):
    write(tmp_path / "new" / "page.html", "text \u00e9")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == "text \u00e9"
