"""The pages for people who come from elsewhere: every key that they name is one, every config they show is taken."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import datamodules
import lit_rlhf
from lit_rlhf import losses
from lit_rlhf.cli import main
from lit_rlhf.schedules import WarmupDecay

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/migrating").glob("*.md"))
MODULES = [getattr(lit_rlhf, name) for name in dir(lit_rlhf) if name.endswith("Module")]
DATA = [getattr(datamodules, name) for name in datamodules.__all__ if name.endswith("DataModule")]
NESTED = {"optimizer": [torch.optim.AdamW], "lr_scheduler": [WarmupDecay]}
PARTS = {"model": MODULES, "data": DATA, "trainer": [Trainer]}


def kinds(hint: Any) -> Iterator[type]:
    """The dataclasses that a type hint allows."""
    if dataclasses.is_dataclass(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from kinds(part)


def exists(key: str) -> bool:
    part, *path = key.split(".")
    classes = PARTS[part]
    for name in path:
        having = [kind for kind in classes if name in inspect.signature(kind).parameters]
        if not having:
            return False
        hints = [typing.get_type_hints(kind.__init__).get(name) for kind in having]
        classes = NESTED.get(name) or [kind for hint in hints for kind in kinds(hint)]
    return bool(path)


def keys_of(page: Path) -> list[str]:
    """What stands in code quotes anywhere outside of code blocks and begins as a key does."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"`((?:model|data|trainer)\.[a-z_.]+)`", text)
    return [key.replace(".init_args", "") for key in found]


@pytest.mark.parametrize("key", ["model.betta", "data.backbone", "model.backbone.lora.rank", "model.optimizer.eta"])
def test_a_key_that_does_not_exist_is_noticed(key: str):
    assert not exists(key)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_key_exists(page: Path):
    keys = keys_of(page)
    assert len(keys) > 30
    assert [key for key in keys if not exists(key)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_row_says_what_is_here(page: Path):
    """Three columns: their option, our key or `none` (then why, or what instead), and what differs."""
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|(?: (.*?) ?\|)?$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 40
    assert [row for row in rows if row[1] == ""] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_loss_that_is_named_is_one(page: Path):
    """In the column that is ours."""
    rows = re.findall(r"^\| `.+?` \| (.*)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+_loss)`", row)}
    assert len(named) > 3
    assert named - set(losses.__all__) == set()


def ours(page: Path) -> list[str]:
    """YAML blocks that are ours, not theirs: those that begin with our parts."""
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if re.search(r"^model:$", block, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_configs_that_it_shows_are_taken(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    configs = ours(page)
    assert configs
    for config in configs:
        (tmp_path / "my.yaml").write_text(config)
        with pytest.raises(SystemExit) as stop:
            main(
                [
                    "fit",
                    f"--config={ROOT}/configs/llama3_8b/dpo_qlora.yaml",
                    f"--config={tmp_path}/my.yaml",
                    "--print_config",
                ]
            )
        assert stop.value.code in (0, None), capsys.readouterr().err
