"""The page about estimates: its tables are what the command makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "estimate.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("estimate.py")


def told(name: str) -> str:
    return PAGE.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def test_the_page_tells_what_cards_need(script):
    assert told("cards") == script.cards_table()


def test_the_page_tells_what_was_measured_and_all_of_it_is_within_ten_percent(script):
    runs = json.loads((ROOT / "benchmarks" / "results" / "estimate.json").read_text())["runs"]
    assert told("measured") == script.table(runs)
    assert {run["name"]: script.error_of_peak(run) for run in runs if abs(script.error_of_peak(run)) > 0.1} == {}


def test_the_worst_phase_is_marked_and_compared(script):
    run = {
        "name": "a",
        "origin": "formula",
        "predicted": {"one": 9e6, "two": 2e6},
        "measured": {"one": 1e7, "two": 1e6},
    }
    lines = script.table([run]).splitlines()
    assert lines[2:4] == ["| a | **one** | formula | 9.0 | 10.0 | 0.900 |", "| a | two | formula | 2.0 | 1.0 | 2.000 |"]
    assert "at most 10.0% off" in lines[-1]
    assert script.error_of_peak(run) == pytest.approx(-0.1)


def test_tables_take_their_places(script):
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert script.rewritten(page, {"x": "new"}) == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb"
