"""The site: it is built without a warning, shows every page, sets every formula, and asks nothing of the network."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra `docs`")

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


class Asked(HTMLParser):
    """What a browser fetches by itself when it shows a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        if tag != "a":
            self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset") and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def built(site: Path, page: Path) -> str:
    return (site / page.relative_to(ROOT / "docs").with_suffix(".html")).read_text(encoding="utf-8")


def test_every_page_is_there_and_can_be_reached(site: Path):
    start = (site / "index.html").read_text(encoding="utf-8")
    hidden = [
        page.name for page in PAGES if f'href="{page.relative_to(ROOT / "docs").with_suffix(".html")}"' not in start
    ]
    assert [page for page in hidden if page != "index.md"] == []


def test_nothing_is_fetched_from_elsewhere(site: Path):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    asked = {address for page in pages for address in Asked(page).addresses}
    assert [address for address in sorted(asked) if re.match(r"(?:\w+:)?//", address)] == []
    styles = "".join(sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']*", styles) == []


def test_formulas_are_set(site: Path):
    page = built(site, ROOT / "docs/algorithms/ppo.md")
    formulas = re.findall(r"<math .*?</math>", page, re.DOTALL)
    assert len(formulas) > 60
    assert [formula for formula in formulas if "\\" in formula] == []
    assert "arithmatex" not in page
    assert '<mspace width="0.17em" /><mi>log</mi>' in page


def test_a_formula_of_the_page_reads_as_it_should(site: Path):
    """Text that Markdown or HTML could have taken for their own."""
    page = built(site, ROOT / "docs/algorithms/dpo.md")
    assert page.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == (
        ROOT / "docs/algorithms/dpo.md"
    ).read_text(encoding="utf-8").count("\n$$")
    assert "$" not in re.sub(r"<(script|code|pre)\b.*?</\1>", "", page, flags=re.DOTALL)


def test_links_to_functions_lead_to_their_lines(site: Path):
    """Where a name is defined is in the file; the page that shows the file has that line."""
    links = re.findall(
        r'href="([^"]*house/([^"]+\.py)\.html)#(__codelineno-0-(\d+))"><code>([\w.<>]+?)</code>',
        built(site, ROOT / "docs/algorithms/ppo.md"),
    )
    assert len(links) > 15
    for _, file, anchor, number, shown in links:
        name = shown.replace("<wbr>", "")
        line = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert re.match(rf" *(def|class) {name.split('.')[-1]}\b", line)
        assert f'id="{anchor}"' in (site / f"house/{file}.html").read_text(encoding="utf-8")


def test_the_search_knows_pages_and_not_code(site: Path):
    index = (site / "search/search_index.json").read_text(encoding="utf-8")
    assert '"algorithms/ppo.html#' in index
    assert '"house/lit_rlhf' not in index


def test_lists_and_tables_are_lists_and_tables(site: Path):
    """Markdown on a code host is more patient: a list needs an empty line before it here, an inner one four blanks."""
    for page in PAGES:
        text = re.sub(r"<(script|code|pre|table)\b.*?</\1>", "", built(site, page), flags=re.DOTALL)
        body = text[text.index("<article") : text.index("</article>")]
        assert re.findall(r"<p>(?:(?!</p>).)*?\n(?:- |\d+\. |\| ).{,60}", body, re.DOTALL) == [], page


def test_long_names_break_behind_their_parts(site: Path):
    """In a narrow cell, not in the middle of a word."""
    assert "<code>train/<wbr>clip_<wbr>fraction_<wbr>low</code>" in built(site, ROOT / "docs/metrics.md")
