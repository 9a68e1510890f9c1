"""The report of a run: whole, safe to open, and as it looks in a browser."""

from __future__ import annotations

import time
from itertools import product

import pytest

from lit_rlhf.reports.report import FILE, SECTIONS, write_report
from tests.reports.conftest import FACTS, metrics, samples

ATTACK = "</p></script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'><svg onload='owned=1'>"

CONTRAST = """
(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const paint = rgb(getComputedStyle(at).backgroundColor);
      if (paint.length === 3 || paint[3] === 1) return paint;
    }
    return [255, 255, 255];
  };
  const found = [];
  document.querySelectorAll("details").forEach(details => details.open = true);
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const [ink, paper] = [rgb(element.ownerSVGElement ? style.fill : style.color), behind(element)].map(light);
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""
"""Texts whose contrast with what is behind them is below 4.5, the least that WCAG 2.2 AA allows."""


def test_a_whole_run_has_every_section(finished):
    folder = finished()
    assert write_report(folder) == folder / FILE
    text = (folder / FILE).read_text(encoding="utf-8")
    assert [title for title, _, _ in SECTIONS if f"<h2>{title}</h2>" not in text] == []
    for said in ("PPO", "embedded:tiny_llama", "embedded:prompts_train.jsonl", "2026-01-02 03:04 UTC", "finished"):
        assert said in text
    assert len(text) < 500_000


def test_only_sections_with_data(finished):
    folder = finished(
        facts=None, config=None, responses=[], rows=[{"step": float(at), "train/loss": at} for at in (0, 1)]
    )
    text = write_report(folder, folder / "else.html").read_text(encoding="utf-8")
    assert [title for title, _, _ in SECTIONS if f"<h2>{title}</h2>" in text] == ["Curves", "Files"]
    assert "run.json: there is none" in text
    assert not (folder / FILE).exists()


def test_a_damaged_run_has_a_report_that_says_so(finished):
    folder = finished()
    for name in ("metrics.csv", "samples.jsonl", "run.json", "config.yaml"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) * 2 // 3])
    text = write_report(folder).read_text(encoding="utf-8")
    assert "metrics.csv: its last line is cut short" in text
    assert "samples.jsonl: 1 lines cannot be read" in text
    assert "run.json cannot be read" in text


def test_a_long_run_costs_little(finished):
    folder = finished(rows=metrics(), responses=[row for _ in range(300) for row in samples()])
    rows = (folder / "metrics.csv").read_text().splitlines()
    body = [f"{at},{rows[-1].partition(',')[2]}" for at in range(5000)]
    (folder / "metrics.csv").write_text("\n".join([rows[0], *body]) + "\n")
    begin = time.process_time()
    text = write_report(folder).read_text(encoding="utf-8")
    assert len(text) < 500_000, f"after {time.process_time() - begin:.1f} s"


@pytest.fixture
def attacked(finished):
    """A run in which every text that comes from elsewhere tries to get out of its place."""
    responses = [{**row, "prompt": ATTACK, "response": ATTACK + str(row["score"])} for row in samples()]
    facts = {**FACTS, "warnings": [ATTACK], "command": ATTACK, "device": ATTACK, "versions": {ATTACK: ATTACK}}
    config = {
        "seed_everything": ATTACK,
        "model": {"class_path": ATTACK},
        "data": {"init_args": {ATTACK: ATTACK, "train": ATTACK}},
    }
    rows = [{**row, f"val/x{ATTACK}": row["step"], f"train/data/dropped/{ATTACK}": 1.0} for row in metrics()]
    return write_report(finished(facts=facts, config=config, rows=rows, responses=responses))


def test_no_text_gets_out_of_its_place(attacked):
    text = attacked.read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    assert "<img" not in text
    assert text.count("&lt;script&gt;window.owned") > 20


def test_nothing_runs_that_a_model_wrote(attacked, browser):
    browser.open(attacked)
    assert browser.ask("window.owned === undefined")
    assert browser.ask("document.querySelectorAll('img, script').length") == 1
    assert (browser.complaints(), len(browser.requests())) == ([], 1)


def test_the_policy_holds_where_escaping_would_fail(attacked, browser):
    hole = attacked.with_name("hole.html")
    text = attacked.read_text(encoding="utf-8")
    hole.write_text(text.replace("<main>", f"<main>{ATTACK}<link rel=stylesheet href='http://127.0.0.1:9/x.css'>"))
    browser.open(hole)
    assert browser.ask("window.owned === undefined")
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())
    browser.events.clear()


@pytest.mark.parametrize(("width", "dark"), [*product((390, 1280), (False, True))])
def test_in_a_browser(width, dark, finished, browser):
    page = write_report(finished())
    browser.open(page, width=width, dark=dark)
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.ask(CONTRAST) == []
    assert browser.ask("document.documentElement.scrollWidth") <= width, "with everything folded out"


def test_values_under_the_pointer_and_lines_that_are_hidden(finished, browser):
    browser.open(write_report(finished()))
    figure = "document.querySelector('figure.lines')"
    place = browser.ask(
        f"(() => {{ {figure}.scrollIntoView({{behavior: 'instant'}}); "
        f"const box = {figure}.querySelector('svg').getBoundingClientRect();"
        "return [box.right - 12, box.top + 40] })()"
    )
    browser.point_at(*place)
    assert browser.ask(f"{figure}.querySelector('.tip').textContent").split("\n") == ["step 3", "rollout  3", "val  3"]
    browser.ask(f"{figure}.querySelector('button.key').click()")
    assert browser.ask(f"{figure}.querySelector('g[data-name=rollout]').getBoundingClientRect().width") == 0
    browser.point_at(place[0] - 1, place[1])
    assert "rollout" not in browser.ask(f"{figure}.querySelector('.tip').textContent")
    assert browser.complaints() == []


def test_it_can_be_read_without_scripts(finished, browser):
    page = write_report(finished())
    browser.open(page, scripts=False)
    shot = page.with_suffix(".png")
    browser.picture(shot)
    assert shot.stat().st_size > 50_000
    assert "<button" not in page.read_text(encoding="utf-8")
