"""docs/algorithms/ppo.md keeps its word: settings with their defaults, functions and tests it names, code it shows."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.cli import main
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rollout.options import AdvantageOptions, ClipOptions, KLOptions, ScoreOptions, UpdateOptions

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/algorithms/ppo.md").read_text(encoding="utf-8")
WATCHING = (ROOT / "docs/watching.md").read_text(encoding="utf-8")
MODEL = "meta-llama/Llama-3.2-1B-Instruct"
OPTIONS = (KLOptions, ScoreOptions, AdvantageOptions, ClipOptions, UpdateOptions, CriticOptions)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in re.findall(r"^\| (?!detail|--).*$", PAGE[PAGE.index("## 6.") : PAGE.index("## 7.")], re.MULTILINE)
]
SETTINGS = [setting for row in ROWS for setting in re.findall(r"`([\w.]+: [^`]+)`", row[1])]


@cache
def defined(folder: str, pattern: str) -> set[str]:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py"))
    return set(re.findall(rf"^ *(?:def|class) ({pattern})\b", code, re.MULTILINE))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_has_the_default_that_it_is_said_to_have(setting: str):
    key, told = setting.split(": ", 1)
    name, *fields = key.split(".")
    found = inspect.signature(PPOModule).parameters[name].default
    for field in fields:
        found = vars(found)[field]
    assert yaml.safe_load(told) == found


def test_every_setting_of_the_algorithm_is_explained():
    names = {parameter.default.__class__: name for name, parameter in inspect.signature(PPOModule).parameters.items()}
    keys = {f"{names[kind]}.{field.name}" for kind in OPTIONS for field in dataclasses.fields(kind)}
    keys |= {name for name in inspect.signature(PPOModule).parameters if name.endswith("_coef")}
    assert len(keys) > 35
    assert keys - {setting.split(":")[0] for setting in SETTINGS} == set()


def test_metrics_that_it_names_are_explained_on_the_page_about_watching():
    named = set(re.findall(r"`((?:rollout|train|val|time)/\w+)`", PAGE))
    assert len(named) > 4
    assert {name for name in named if f"`{name}`" not in WATCHING} == set()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_detail_has_a_reason_and_functions_that_exist(row: list[str]):
    _, _, why, code, _ = row
    assert why
    functions = re.findall(r"`(\w+)`", code)
    assert functions
    assert set(functions) <= defined("lit_rlhf", r"\w+")


def test_tests_that_it_names_exist():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40
    assert named - defined("tests", r"test_\w+") == set()


def test_the_code_that_it_shows_runs(tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text(f"{json.dumps({'prompt': 'What is the capital of France?'})}\n" * 4)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = code.replace(MODEL, str(tiny_llama()))
    names: dict[str, object] = {}
    exec(code, names)
    assert Path("my-policy/adapter_model.safetensors").is_file()
    assert Path("my-policy/critic/adapter_model.safetensors").is_file()


def test_the_config_that_it_shows_goes_over_the_embedded_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every key of it is known, and arrives."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_ppo.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={ROOT}/configs/ppo.yaml", f"--config={tmp_path}/my_ppo.yaml", "--print_config"])
    printed, asked = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(text)
    assert stop.value.code in (0, None)
    assert [path for path, value in leaves(asked) if value_at(printed, path) != value] == []


def leaves(node: Any, *path: str | int) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Paths of all that is neither a dictionary nor a list, with what is there."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(child, *path, key)
    else:
        yield path, node


def value_at(node: Any, path: tuple[str | int, ...]) -> object:
    for key in path:
        node = node[key]
    return node
