"""docs/house.md lists every file with the first words that the file says of itself; run this file to write it anew."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/house.md"
PLACES = ("lit_rlhf", "datamodules", "configs", "examples", "benchmarks", "docs")


def house_files() -> list[Path]:
    """What the tree lists: code, configs and pages, from the root; not ``__init__.py``, shipped data or results."""
    found = [path.relative_to(ROOT) for place in PLACES for path in sorted((ROOT / place).rglob("*"))]
    hidden = {"assets", "results", "__pycache__"}
    return [
        path
        for path in found
        if path.suffix in {".py", ".yaml", ".md"} and path.name != "__init__.py" and not hidden & set(path.parts)
    ]


def first_words(file: Path) -> str:
    """The first sentence of a file about itself: a docstring, the heading of a page, the header of a config."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    sentence = re.split(r"\n\s*\n|\n#\s*\n", text.lstrip("# "))[0] if file.suffix != ".md" else text.splitlines()[0]
    plain = re.sub(r"\s*\n(# ?)?\s*", " ", sentence.lstrip("# ")).replace("``", "")
    return re.split(r"(?<=\w\w)\. |\.$", plain)[0]


def tables() -> str:
    """A heading for each folder, and under it a row for each of its files."""
    rooms: dict[Path, list[Path]] = {}
    for file in house_files():
        rooms.setdefault(file.parent, []).append(file)

    def lines() -> Iterator[str]:
        for room, files in rooms.items():
            opening = room / "__init__.py"
            yield f"\n## {room.as_posix()}/\n"
            if (ROOT / opening).is_file():
                yield f"{first_words(opening)}.\n"
            yield "| file | what it is |\n|---|---|"
            yield from (f"| `{file.name}` | {first_words(file).replace('|', r'&#124;')} |" for file in files)

    return "\n".join(lines()) + "\n"


def test_every_file_has_its_line():
    assert PAGE.read_text(encoding="utf-8").endswith(f".\n{tables()}"), "run: python tests/test_docs_house.py"


def test_every_file_says_what_it_is():
    assert [str(file) for file in house_files() if not first_words(file)] == []


if __name__ == "__main__":
    opening, _, _ = PAGE.read_text(encoding="utf-8").partition("\n## ")
    PAGE.write_text(opening + tables(), encoding="utf-8")
