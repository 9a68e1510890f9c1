"""Code that pages show: Python runs, commands are taken with every flag and key, excerpts are what the files say."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import READING, TRAINING, main
from lit_rlhf.embedded import resolve

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"])
SETTINGS = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "examples").glob("*.yaml")])
MODEL = "meta-llama/Llama-3.2-1B-Instruct"
ELSEWHERE = {"data.md", "ppo.md", "README.md"}  # whose code has tests of its own
NOT_RUN = {"score.md", "serve.md", "checkpoints.md"}  # a server, another package, parts of a program: parsed alone
EXCERPTS = {"adding_an_algorithm.md": "examples/own_algorithm.py"}
PAIR = {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}


def blocks(page: Path, *languages: str) -> list[str]:
    """What stands between fences of these languages."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [code for language, code in fences if language in languages]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> Iterator[tuple[str, str]]:
    """Every command of this package in a block of a page or in the header of a config, and where it stands."""
    for path in [*PAGES, *SETTINGS]:
        text = path.read_text(encoding="utf-8")
        shell = "\n".join(blocks(path, "bash", "text", "")) if path.suffix == ".md" else text[: text.index("\n\n")]
        for line in re.sub(r"\\\n#?\s*", "", shell).splitlines():
            if found := re.search(r"(?:python -m lit_rlhf|-m lit_rlhf|^\$? ?lit-rlhf) ([a-z]+ .*)", line):
                yield re.split(r"  #| [<>|] ", found[1])[0].strip(), page_name(path)


COMMANDS = {words: place for words, place in commands() if not re.search(r"\.\.\.|[A-Z]{3,}|\[", words)}
"""Those that are whole: others hold words such as RUN or FILE."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader might stand: the configs, and some files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("pairs.jsonl", "held_out.jsonl", "prompts.jsonl"):
        (tmp_path / name).write_text(f"{json.dumps(PAIR)}\n" * 20)
    return tmp_path


def test_the_commands_were_found():
    assert len(COMMANDS) > 60
    assert {words.split()[0] for words in COMMANDS} >= {*TRAINING, "export", "generate", "preview", "score"}


def training_words(words: list[str]) -> list[str]:
    """What of a command line is for the parser of `fit`."""
    if words[0] in READING:
        _, rest = import_module(f"lit_rlhf.commands.{words[0]}")._parser().parse_known_args(words[1:])
        configs = [f"--config={word}" for flag, word in pairwise(words) if flag == "--config"]
        return ["fit", *configs, *rest] if configs else []
    return words if words[0] in TRAINING else []


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: f"{COMMANDS[line]}: {line[:60]}")
def test_a_command_is_taken(line: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    """A config of the reader's own is empty here, or that of DPO where it is the only one; nothing is run."""
    words = shlex.split(line)
    configs = [Path(name) for name in re.findall(r"--config[ =](\S+)", line)]
    for path in configs:
        if not path.exists():
            path.write_text("{}" if len(configs) > 1 else Path("configs/dpo.yaml").read_text())
    if whole := training_words(words):
        with pytest.raises(SystemExit) as stop:
            main([*whole, "--print_config"])
        assert stop.value.code in (0, None), capsys.readouterr().err
    elif words[0] not in READING:
        parser = argparse.ArgumentParser()
        import_module(f"lit_rlhf.commands.{words[0]}").add_arguments(parser)
        parser.parse_intermixed_args(words[1:])


@pytest.mark.parametrize(
    "line",
    ["fit --config configs/dpo.yaml --model.betta 1", "export runs/dpo --merged --out x", "score --quiet runs/x"],
)
def test_a_slip_is_not_taken(line: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises((SystemExit, AssertionError)):
        test_a_command_is_taken(line, folder, capsys)


def shown() -> Iterator[tuple[Path, list[str]]]:
    """Pages with Python, but for those that have a test of their own, and what stands there."""
    for page in PAGES:
        code = [block for block in blocks(page, "python") if not block.startswith("# TRL\n")]
        if code and page.name not in ELSEWHERE and page.name not in EXCERPTS:
            yield page, code


SHOWN = dict(shown())


@pytest.mark.parametrize("page", SHOWN, ids=page_name)
def test_python_runs(page: Path, folder: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    model = str(tiny_llama())
    (folder / "my-model").symlink_to(model)
    (folder / "lit_rlhf").symlink_to(ROOT / "lit_rlhf")
    (folder / "runs").mkdir()
    (folder / "runs/reward").symlink_to(resolve("embedded:reward_adapter"))
    names: dict[str, object] = {"__name__": "a_page"}
    for code in SHOWN[page]:
        ast.parse(code)
        if page.name not in NOT_RUN:
            exec(code.replace(MODEL, model), names)
    assert names


def statements(function: ast.FunctionDef) -> list[str]:
    """What a function does: without its docstring."""
    return [ast.unparse(node) for node in function.body if not isinstance(getattr(node, "value", None), ast.Constant)]


@pytest.mark.parametrize(("name", "source"), EXCERPTS.items())
def test_an_excerpt_is_what_the_file_says(name: str, source: str):
    code = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    real = {node.name: statements(node) for node in ast.walk(code) if isinstance(node, ast.FunctionDef)}
    excerpts = [ast.parse(block).body[0] for block in blocks(ROOT / "docs" / name, "python")]
    assert len(excerpts) == 2
    for function in excerpts:
        assert isinstance(function, ast.FunctionDef)
        assert statements(function) == real[function.name]


def test_a_config_that_is_shown_is_the_config():
    (shown,) = blocks(ROOT / "docs/adding_an_algorithm.md", "yaml")
    real = yaml.safe_load((ROOT / "examples/own_algorithm.yaml").read_text())
    assert yaml.safe_load(shown)["model"] == real["model"]
