"""The page itself: one file without anything from outside, whose policy lets nothing in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from lit_rlhf.reports.markup import Html, el, prose


class Section(NamedTuple):
    """A part of a page.

    Args:
        title: of the section.
        lead: one sentence: what it shows and what healthy looks like.
        body: what it shows.
    """

    title: str
    lead: str
    body: Html


def page(title: str, header: Html, sections: Sequence[Section]) -> str:
    """A whole page.

    The policy names the digests of its one style and one script: whatever else comes to stand in the page is neither
    run nor loaded.

    Args:
        title: of the browser's tab.
        header: what stands on top.
        sections: in order.
    """
    style, script = (Html(files(__package__).joinpath(name).read_text("utf-8")) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        el("style", style),
    )
    links = (el("a", section.title, href=f"#{_anchor(section)}") for section in sections)
    body = el(
        "body",
        header,
        el("nav", *links, aria_label="Sections"),
        el("main", *map(_section, sections)),
        el("script", script),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def write(file: Path, text: str) -> None:
    """Write a page whole or not at all.

    Args:
        file: where to.
        text: of the page.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def _section(section: Section) -> Html:
    lead = el("p", prose(section.lead), class_="lead") if section.lead else None
    return el("section", el("h2", section.title), lead, section.body, id=_anchor(section))


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
