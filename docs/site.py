"""What the site makes of the pages beside building them: hooks of mkdocs, named in mkdocs.yml.

1. Links that leave docs/ lead to pages of the site too: code with its line numbers, Markdown as it is. So the pages
   read the same in a checkout and on the site, and the site needs nothing from elsewhere.
2. Formulas become MathML when the site is built: browsers draw it themselves, without a script or a font.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
HOUSE = "house"  # where the site keeps pages of what lies outside of docs/
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=(?:#[^)\s]*)?\))")
DEFINED = re.compile(r'(?<=<a href=")([^"#]*house/([^"#]+\.py)\.html)(?="><code>(?:\w+\.)*(\w+)</code>)')
LONG_NAME = re.compile(r"(?<=<code>)[\w./-]+(?=</code>)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside of docs/ that a page links to, and for what these link to."""
    asked = [target for file in files.documentation_pages() for target in _targets(file)]
    while asked:
        path = asked.pop()
        if path.startswith("docs/") or files.get_file_from_path(_page(path)):
            continue
        file = File.generated(config, _page(path), content=_content(path), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(file)
        asked += _targets(file) if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links in the tree into links between pages."""
    here = page.file.src_uri

    def rewrite(link: re.Match[str]) -> str:
        path = _in_tree(here, link[0])
        return posixpath.relpath(_page(path), posixpath.dirname(here) or ".") if path else link[0]

    return LINK.sub(rewrite, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Set the formulas, let links to functions lead to their lines, and long names break where a reader would."""
    content = DEFINED.sub(lambda link: link[1] + _line(link[2], link[3]), content)
    content = LONG_NAME.sub(lambda name: re.sub(r"(?<=[./_])(?=\w)", "<wbr>", name[0]), content)
    return FORMULA.sub(lambda found: mathml(html.unescape(found[2]), shown=found[1] == "div"), content)


def mathml(latex: str, *, shown: bool) -> str:
    """A formula as MathML, on a line of its own if it is to be shown; browsers put no room around named functions."""
    formula = convert(latex.strip(), display="block" if shown else "inline")
    return re.sub(
        r"<mi>(log|exp|min|max)</mi>", r'<mspace width="0.17em" /><mi>\1</mi><mspace width="0.17em" />', formula
    )


def _page(path: str) -> str:
    """The page that shows a file of the tree; those of docs/ are there already."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{HOUSE}/{path}" if path.endswith(".md") else f"{HOUSE}/{path}.md"


def _in_tree(uri: str, link: str) -> str | None:
    """The file that a link on a page means, from the root of the tree; None for other links."""
    folder = posixpath.dirname(uri.removeprefix(f"{HOUSE}/") if uri.startswith(f"{HOUSE}/") else f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(folder, link))
    path = f"{path}/__init__.py" if (ROOT / path / "__init__.py").is_file() else path
    return path if "://" not in link and (ROOT / path).is_file() else None


def _targets(file: File) -> Iterator[str]:
    found = (_in_tree(file.src_uri, link) for link in LINK.findall(file.content_string))
    yield from (path for path in found if path)


def _content(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(Path(path).suffix, "text")
    return f'---\nsearch: {{exclude: true}}\n---\n# {path}\n\n~~~~~~ {{.{language} linenums="1"}}\n{text}~~~~~~\n'


def _line(path: str, name: str) -> str:
    """The anchor of the line of a file that defines a name; nothing where none does."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    found = (number for number, line in enumerate(lines, 1) if re.match(rf" *(?:def|class) {name}\b", line))
    return "".join(f"#__codelineno-0-{number}" for number in list(found)[:1])
