"""What healthy looks like is said in the words of the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_rlhf.reports.words import PAGES, healthy

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_the_words_are_those_of_the_docs(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    cells = {cell.strip() for line in text.splitlines() if line.startswith("| `") for cell in line.split("|")}
    beginnings = {cell.partition(";")[0] for cell in cells}
    _, words = PAGES[page]
    assert [said for said in words.values() if said not in cells | beginnings] == []


@pytest.mark.parametrize(
    ("panels", "loss"),
    [
        (["score_std", "loss", "rewards/accuracy"], None),
        (["loss", "rewards/accuracy"], "starts at ln 2 = 0.693 for the sigmoid loss and falls; 0 is overfitting"),
        (["loss", "own"], None),
    ],
)
def test_a_run_gets_the_words_of_its_page(panels, loss):
    assert healthy(panels).get("loss") == loss


def test_each_kind_of_run_has_its_page():
    assert [bool(healthy([sign])) for sign, _ in PAGES.values()] == [True] * 4
    assert healthy(["whatever"]) == {}
