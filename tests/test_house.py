"""The house keeps its own rules: who imports whom, what files are called, how long they get, what is never written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(path for package in ("lit_rlhf", "datamodules") for path in (ROOT / package).rglob("*.py"))
PLACES = ("lit_rlhf", "datamodules", "configs", "tests", "benchmarks", "docs", "examples", ".ci", "requirements")

# Which rooms each room may import, beside itself. A new room has to be entered here.
BELOW: dict[str, set[str]] = {
    "types": set(),
    "ranks": set(),
    "losses": set(),
    "schedules": set(),
    "embedded": set(),
    "reports": set(),
    "datamodules": {"types"},
    "checkpoints": {"ranks"},
    "metrics": {"types", "losses", "ranks"},
    "models": {"types", "losses", "ranks"},
    "rewards": {"types", "losses", "ranks", "models"},
    "rollout": {"types", "losses", "ranks", "models", "rewards", "metrics"},
}
BELOW["estimating"] = {"types", "losses", "ranks", "models", "rewards", "rollout", "metrics"}
BELOW["strategies"] = {*BELOW} - {"datamodules"}
BELOW["algorithms"] = {*BELOW} - {"datamodules"}
BELOW["callbacks"] = {*BELOW} - {"algorithms"}
TOP = {"cli", "commands", "__main__", "lit_rlhf"}
MAX_LINES, MAX_LINES_ALGORITHM, MAX_FUNCTION = 400, 350, 80


def room(module: str) -> str:
    """The room that a dotted name lies in: lit_rlhf.models.loading -> models, datamodules.records -> datamodules."""
    package, *inside = module.split(".")
    return inside[0] if package == "lit_rlhf" and inside else package


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                [f"lit_rlhf.{name.name}" for name in node.names] if node.module == "lit_rlhf" else [node.module]
            )


def forbidden(module: str, source: str) -> list[str]:
    """The imports of ``module`` that point the wrong way."""
    here = room(module)
    ours = [name for name in imported(source) if name.split(".")[0] in ("lit_rlhf", "datamodules")]
    wrong = [name for name in ours if here not in TOP and room(name) not in {here, *BELOW[here]}]
    if here == "losses":
        allowed = {"torch", "lit_rlhf", *sys.stdlib_module_names}
        wrong += [name for name in imported(source) if name.split(".")[0] not in allowed]
    return wrong


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def texts() -> Iterator[tuple[Path, str]]:
    """Every text that a person wrote: the files of the house and those at its root, data left out."""
    found = [path for place in PLACES for path in (ROOT / place).rglob("*")] + list(ROOT.glob("*"))
    for path in sorted(found):
        written = path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".jinja"} or path.name in {"Makefile", "run"}
        if written and path.is_file():
            yield path, path.read_text(encoding="utf-8")


def test_the_walk_found_the_code():
    names = {module_name(path) for path in CODE}
    assert {"lit_rlhf.types", "lit_rlhf.losses.preference", "lit_rlhf.models.backbone", "datamodules"} <= names


@pytest.mark.parametrize("path", CODE, ids=module_name)
def test_imports_point_one_way(path: Path):
    assert forbidden(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("lit_rlhf.types", "from lit_rlhf.losses.preference import sigmoid_loss"),
        ("lit_rlhf.losses.preference", "import numpy"),
        ("lit_rlhf.losses.preference", "from lit_rlhf.types import Forest"),
        ("lit_rlhf.models.backbone", "def f():\n    import lit_rlhf.algorithms.dpo"),
        ("lit_rlhf.rewards.function", "from lit_rlhf.rollout import sampling"),
        ("lit_rlhf.algorithms.dpo", "from lit_rlhf import callbacks"),
        ("lit_rlhf.algorithms.dpo", "from datamodules import PreferenceDataModule"),
        ("lit_rlhf.callbacks.export", "from lit_rlhf.algorithms.dpo import DPOModule"),
        ("lit_rlhf.callbacks.export", "from lit_rlhf import DPOModule"),
        ("lit_rlhf.strategies.fsdp2", "from lit_rlhf import cli"),
        ("datamodules.records", "import lit_rlhf.models"),
    ],
)
def test_a_planted_import_is_refused(module: str, line: str):
    assert len(forbidden(module, line)) == 1


def test_names_are_promises():
    vague = {"utils", "util", "common", "helpers", "helper", "base", "misc", "core"}
    assert [path for path in CODE if vague & set(path.relative_to(ROOT).with_suffix("").parts)] == []


def test_every_module_has_its_test():
    def mirror(path: Path) -> Path:
        inside = (
            path.relative_to(ROOT / "lit_rlhf") if path.is_relative_to(ROOT / "lit_rlhf") else path.relative_to(ROOT)
        )
        return ROOT / "tests" / inside.parent / f"test_{inside.name}"

    modules = [path for path in CODE if not path.name.startswith("__")]
    assert [str(mirror(path).relative_to(ROOT)) for path in modules if not mirror(path).is_file()] == []


@pytest.mark.parametrize("path", CODE, ids=module_name)
def test_budgets(path: Path):
    source = path.read_text()
    limit = MAX_LINES_ALGORITHM if room(module_name(path)) == "algorithms" else MAX_LINES
    assert len(source.splitlines()) <= limit
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    assert [node.name for node in functions if node.end_lineno - node.lineno >= MAX_FUNCTION] == []


def test_nothing_unsafe_and_no_machine_is_named():
    never = re.compile(r"weights_only\s*=\s*False|trust_remote_code\s*[=:]\s*[Tt]rue|(?<![\w.])/(work|root|home|tmp)/")
    found = [f"{path.relative_to(ROOT)}: {match[0]}" for path, text in texts() for match in never.finditer(text)]
    assert found == []


def test_code_is_ascii():
    assert [module_name(path) for path in CODE if not path.read_text(encoding="utf-8").isascii()] == []


def python(code: str) -> str:
    """What ``code`` prints in a fresh interpreter that sees this tree."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_losses_cost_no_more_than_torch():
    heavy = "{'lightning', 'transformers', 'peft', 'datasets', 'pandas', 'matplotlib'}"
    assert python(f"import sys, lit_rlhf.losses; print({heavy} & set(sys.modules))").strip() == "set()"


def test_every_module_imports_without_what_is_optional():
    names = [module_name(path) for path in CODE if path.name != "__main__.py"]
    blocked = ("datasets", "pandas", "tensorboard", "wandb", "mlflow", "kernels", "scipy")
    python(
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked}))  # None there makes an import fail\n"
        f"for name in {names}: importlib.import_module(name)"
    )
