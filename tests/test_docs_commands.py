"""docs/commands.md shows what `--help` says. ``python tests/test_docs_commands.py`` writes it anew."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from unittest import mock

from lit_rlhf.cli import BESIDE, TRAINING, main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/commands.md"


def said(*words: str) -> str:
    """What a command prints on a terminal of 100 columns before it leaves."""
    out = io.StringIO()
    columns = mock.patch.dict(os.environ, {"COLUMNS": "100"})
    with columns, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def block(text: str) -> str:
    return f"\n```text\n{text}\n```\n\n"


def page() -> str:
    """The page as it should be."""
    parts = {"help": block(said()), "commands": "".join(f"\n### {name}\n{block(said(name))}" for name in BESIDE)}
    text = PAGE.read_text(encoding="utf-8")
    for mark, part in parts.items():
        written = f"<!-- {mark} -->\n{part}<!-- /{mark} -->"
        text = re.sub(rf"<!-- {mark} -->.*?<!-- /{mark} -->", lambda _, new=written: new, text, flags=re.DOTALL)
    return text.replace("\n\n\n", "\n\n")


def test_it_says_what_help_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python tests/test_docs_commands.py"


def test_every_command_is_there():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in BESIDE if f"\n### {name}\n" not in text] == []
    assert [name for name in TRAINING if f"python -m lit_rlhf {name} " not in text] == []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
