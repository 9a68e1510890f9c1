"""Runs on one page."""

from __future__ import annotations

import copy
import json

import pytest

from lit_rlhf.reports import comparison
from lit_rlhf.reports.comparison import SECTIONS, read_tables, write_comparison
from lit_rlhf.reports.left import read_run
from lit_rlhf.reports.report import write_report
from tests.reports.conftest import CONFIG, metrics, samples


@pytest.fixture
def two(finished):
    """Two runs that differ in one setting, in their numbers and in their answers."""
    other = copy.deepcopy(CONFIG)
    other["model"]["init_args"]["kl"]["coef"] = 0.2
    other["trainer"]["default_root_dir"] = "runs/other"
    rows = [{name: 2 * value if "score" in name else value for name, value in row.items()} for row in metrics()]
    answers = [{**row, "response": f"Other: {row['response']}"} for row in samples()]
    return [finished("one"), finished("two", config=other, rows=rows, responses=answers)]


def runs(folders):
    return {folder.name: read_run(folder) for folder in folders}


def test_a_page_with_every_section(two, tmp_path):
    write_report(two[0])
    page = write_comparison(two, tmp_path / "pages" / "comparison.html")
    text = page.read_text(encoding="utf-8")
    assert [title for title, _, _ in SECTIONS if f"<h2>{title}</h2>" not in text] == []
    assert "<h1>one, two</h1>" in text
    assert '<a href="../one/report.html">one</a>' in text
    assert "../two" not in text, "it has no report to go to"


def test_links_are_quoted(finished, tmp_path):
    folder = finished('a "b" %')
    write_report(folder)
    text = write_comparison([folder], tmp_path / "c.html").read_text(encoding="utf-8")
    assert '<a href="a%20%22b%22%20%25/report.html">' in text


def test_final_numbers_that_differ(two):
    shown = comparison.final_numbers(runs(two))
    assert '<th scope="row">score</th><td class="number">3</td><td class="number">6</td>' in shown
    assert ">kl<" not in shown


def test_settings_that_differ(two):
    shown = comparison.differences(runs(two))
    assert shown.count("<tr>") == 2, "the head and one setting: folders always differ"
    assert '<th scope="row">model.kl.coef</th><td class="number">0.05</td><td class="number">0.2</td>' in shown
    assert comparison.differences(runs([two[0]])) is None


def test_what_one_run_alone_has_is_folded_in(two, finished):
    alone = finished("alone", rows=[{"step": 0.0, "val/own": 1.5, "val/score": 9.0}], config={"model": {"extra": 1}})
    whole, _, folded = comparison.final_numbers(runs([*two, alone])).partition("<details>")
    assert (
        '<th scope="row">score</th><td class="number">3</td><td class="number">6</td><td class="number">9</td>' in whole
    )
    assert "own" not in whole
    assert '<td class="number">1.5</td>' in folded
    whole, _, folded = comparison.differences(runs([*two, alone])).partition("<details>")
    assert "model.kl.coef" in whole
    assert "model.kl.target" not in whole + folded, "it is empty"
    assert "1 settings that one run alone has" in folded
    assert "model.extra" in folded


def test_curves_over_one_another(two):
    shown = comparison.curves_together(runs(two))
    first = shown.split("<figure")[1]
    assert [part.partition("<")[0] for part in first.split('class="key dotted s')[1:]] == ['1">one', '2">two']
    assert first.count('data-name="one"') == 2, "the held-out line alone"


def test_curves_that_one_run_alone_has_are_left_out(finished):
    own = finished("own", rows=[{"step": float(at), "val/own": at, "train/loss": at} for at in (0, 1)])
    other = finished("other", rows=[{"step": float(at), "train/loss": 2 * at} for at in (0, 1)])
    shown = comparison.curves_together(runs([own, other]))
    assert "loss" in shown
    assert "own by step" not in shown


def test_paths_and_answers(two):
    assert comparison.paths_together(runs(two)).count('class="ring"') == 2
    first = comparison.answers_together(runs(two)).split("<article")[1]
    assert first.index("before training") < first.index("Answer 0 at 0.") < first.index("Answer 0 at 3.")
    assert first.index("Answer 0 at 3.") < first.index("Other: Answer 0 at 3.")


def test_runs_of_one_name_are_told_apart(finished, tmp_path):
    folders = [finished("a/run"), finished("b/run")]
    text = write_comparison(folders, tmp_path / "c.html").read_text()
    assert "<h1>a/run, b/run</h1>" in text
    text = write_comparison([folders[0]] * 2, tmp_path / "c.html").read_text()
    assert "<h1>run (1), run (2)</h1>" in text


def test_tables_from_elsewhere_stand_first(two, tmp_path):
    tables = tmp_path / "comparison.json"
    rows = [{"run": "base", "true score": 0.5, "<b>": True}, {"run": "dpo", "true score": 1.75, "more": None}]
    tables.write_text(json.dumps({"title": "True preference", "note": "Higher is `better`.", "rows": rows}))
    text = write_comparison(two, tmp_path / "c.html", tables).read_text()
    assert text.index("<h2>True preference</h2>") < text.index("<h2>Runs</h2>")
    assert "Higher is <code>better</code>." in text
    assert '<td class="number">1.75</td><td>-</td><td class="number">-</td>' in text
    assert "<td>True</td>" in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "broken JSON"),
        ("7", '"rows"'),
        ('{"title": "a", "rows": []}', '"rows"'),
        ('{"title": "a", "rows": [1]}', '"rows"'),
        ('[{"rows": [{"a": 1}]}]', 'no "title"'),
    ],
)
def test_tables_that_are_none(text, told, tmp_path):
    (tmp_path / "tables.json").write_text(text)
    with pytest.raises(ValueError, match=f"tables.json: .*{told}"):
        read_tables(tmp_path / "tables.json")


def test_runs_of_which_little_is_known(finished, tmp_path):
    bare = finished("bare", facts=None, config=None, responses=[], rows=[{"step": 0.0, "val/loss": 1.0}])
    text = write_comparison([bare, finished("whole")], tmp_path / "c.html").read_text()
    assert "run.json: there is none" in text


def test_in_a_browser(two, browser, tmp_path):
    page = write_comparison(two, tmp_path / "c.html")
    browser.open(page, width=390, dark=True)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") <= 390
