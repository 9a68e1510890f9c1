"""ruff and mypy refuse what they are set up to refuse: each family of rules meets one planted violation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CLEAN = '"""Doc."""\n'
PLANTED = {
    "E501": f"x = '{'x' * 120}'\n",
    "E711": "x = 1\ny = x == None\n",
    "W291": "x = 1 \n",
    "F401": "import json\n",
    "F821": "x = undefined\n",
    "I001": "import sys\nimport json\n\nx = sys, json\n",
    "UP006": "from typing import List\n\nx: List[int] = []\n",
    "B006": 'def f(x: list[int] = []) -> None:\n    """Do."""\n',
    "C401": "x = set(y for y in [1])\n",
    "D103": "def f() -> None:\n    pass\n",
    "D417": 'def f(x: int, y: int) -> None:\n    """Do.\n\n    Args:\n        x: first.\n    """\n',
    "ANN001": 'def f(x) -> None:\n    """Do."""\n',
    "ANN201": 'def f():\n    """Do."""\n',
    "RET505": 'def f(x: int) -> int:\n    """Do."""\n    if x:\n        return 1\n    else:\n        return 2\n',
    "SIM102": "x = 1\nif x:\n    if x > 2:\n        x = 3\n",
    "PT011": "import pytest\n\nwith pytest.raises(ValueError):\n    int('x')\n",
    "N801": 'class lower:\n    """Doc."""\n',
    "NPY002": "import numpy as np\n\nx = np.random.rand(3)\n",
    "PERF401": "x = []\nfor y in [1, 2]:\n    x.append(y + 1)\n",
    "RUF100": "x = 1  # noqa: F401\n",
    "PLE0605": "__all__ = 3\n",
    "PLW0602": 'x = 1\n\n\ndef f() -> int:\n    """Do."""\n    global x\n    return x\n',
    "C901": 'def f(x: int) -> int:\n    """Do."""\n'
    + "".join(f"    if x == {i}:\n        x += {i}\n" for i in range(10))
    + "    return x\n",
    "T201": "print(1)\n",
    "TID251": "import pickle\n\nx = pickle\n",
    "TID252": "from . import x\n\ny = x\n",
    "PGH003": "x: int = 'a'  # type: ignore\n",
    "PGH004": "import json  # noqa\n",
    "ERA001": "# x = f(1)\n",
}


def ruff(source: str) -> list[str]:
    """The codes that ruff reports for ``source`` as a file of lit_rlhf, under the project's own settings."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename"]
    done = subprocess.run(
        [*command, "lit_rlhf/planted.py", "-"], input=source, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("lit_rlhf/planted.py:")]


@pytest.mark.parametrize("code", PLANTED)
def test_ruff_refuses(code: str):
    assert code in ruff(CLEAN + "\n" + PLANTED[code])


def test_ruff_passes_what_is_clean():
    assert ruff(CLEAN) == []


def mypy(source: str, folder: Path) -> str:
    """What mypy prints for ``source`` as a file of its own, under the project's own settings."""
    planted = folder / "planted.py"
    planted.write_text(source)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--cache-dir", folder, planted]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("def f(x): return x", "no-untyped-def"),
        ("def f(x: int, y) -> int: return x", "no-untyped-def"),
        ("x: int = 'a'", "assignment"),
        ("x = 1 == 'a'", "comparison-overlap"),
        ("x: int = 'a'  # type: ignore", "ignore-without-code"),
        ("x: int = 1  # type: ignore[assignment]", "unused-ignore"),
    ],
)
def test_mypy_refuses(source: str, code: str, tmp_path: Path):
    assert f"[{code}]" in mypy(source, tmp_path)


def test_mypy_passes_what_is_clean(tmp_path: Path):
    assert "Success" in mypy("x: int = 1", tmp_path)
