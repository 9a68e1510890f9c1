"""The README keeps its word: the tree of its house is the real one, and so are its rooms and its defaults; its example
of an own Trainer runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def tree_paths(text: str) -> dict[str, str]:
    """The paths of an indented tree, each with its description; folders end in a slash."""
    above: list[str] = []
    paths = {}
    for line in text.splitlines():
        name, _, description = line.strip().partition(" ")
        above[(len(line) - len(line.lstrip())) // 2 :] = [name]
        paths["".join(above)] = description.strip()
    return paths


def tree_block() -> dict[str, str]:
    page = (ROOT / "docs/house.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(.*?)```\n$", page, re.DOTALL)
    assert block, "the page ends with the tree"
    return tree_paths(block[1])


def test_the_tree_is_the_real_one():
    listed = {path for path in tree_block() if not path.endswith("/")}
    real = {path.as_posix() for path in house_files()}
    assert (sorted(listed - real), sorted(real - listed)) == ([], [])


def test_every_room_is_named():
    _, _, rooms = README.partition("## The house")
    folders = [path.name for path in (ROOT / "lit_rlhf").iterdir() if (path / "__init__.py").is_file()]
    assert [name for name in [*folders, *PLACES[1:]] if f"{name}/`" not in rooms] == []


def test_every_file_of_the_tree_has_a_line():
    assert [path for path, description in tree_block().items() if not description and not path.endswith("/")] == []


def test_no_line_is_too_long():
    assert [line for line in README.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_defaults_in_the_table_are_the_real_ones():
    from datamodules import PreferenceDataModule
    from lit_rlhf import BackboneConfig, DPOModule, LoraOptions

    module = DPOModule(BackboneConfig("some/model"))
    data = PreferenceDataModule()
    table = dict(re.findall(r"^\| `(?:model|data)\.init_args\.([\w.]+)` \|.*\| `?([^|`]+)`? \|$", README, re.MULTILINE))
    lora = LoraOptions()
    assert table["backbone.lora"] == f"{lora.r}, {lora.alpha}, {lora.dropout:g}, all linear"
    assert lora.target_modules == "all-linear"
    assert table["backbone.quantization"] == BackboneConfig("some/model").quantization
    assert table["backbone.dtype"] == BackboneConfig("some/model").dtype
    assert float(table["beta"]) == module.reward_scale
    said = dict(re.findall(r"^\| `data\.init_args\.(\w+)` \|.*\| `?([^|`]+)`? \|$", README, re.MULTILINE))
    assert said == {name: str(getattr(data, name)) for name in said}
    assert len(said) == 12


def test_the_own_trainer_example_runs(tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Trainer" in block]
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "What is the capital of France?", "chosen": " It is Paris.", "rejected": " I do not know."}
    Path("pairs.jsonl").write_text(f"{json.dumps(row)}\n" * 20)
    Path("prompts.jsonl").write_text('{"prompt": "What is the capital of France?"}\n' * 3)
    code = "\n".join(blocks).replace("meta-llama/Llama-3.2-1B-Instruct", str(tiny_llama()))
    assert len(blocks) == 2
    names: dict[str, object] = {}
    exec(code, names)
    assert int(vars(names["module"])["_modules"]["iterations"].number) == 1
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
