"""The README keeps its word: its rooms and its defaults are the real ones, and its example of an own Trainer runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACES = ("datamodules", "configs", "examples", "benchmarks", "docs")


def test_every_room_is_named():
    _, _, rooms = README.partition("## The house")
    folders = [path.name for path in (ROOT / "lit_rlhf").iterdir() if (path / "__init__.py").is_file()]
    assert [name for name in [*folders, *PLACES] if f"{name}/`" not in rooms] == []


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
