"""Keys, metrics and losses that pages name exist; every option of elsewhere has an answer; configs shown are taken."""

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
from lit_rlhf.metrics.calibration import CALIBRATION_METRICS
from lit_rlhf.metrics.data import DATA_METRICS
from lit_rlhf.metrics.moments import MOMENT_METRICS
from lit_rlhf.metrics.pairs import PAIR_METRICS
from lit_rlhf.metrics.scores import SCORE_METRICS
from lit_rlhf.metrics.texts import TEXT_METRICS
from lit_rlhf.schedules import WarmupDecay

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MIGRATING = sorted((ROOT / "docs/migrating").glob("*.md"))
METRICS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
LOGGED = {*DATA_METRICS, *PAIR_METRICS, *TEXT_METRICS, *SCORE_METRICS, *MOMENT_METRICS, *CALIBRATION_METRICS}
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
    found = re.findall(r"`((?:model|data|trainer)\.[a-z_.]+)(?:: [^`]+)?`", text)
    keys = (key.replace(".init_args", "") for key in found if not key.endswith((".safetensors", ".py", ".md")))
    return [key for key in keys if "." in key]


@pytest.mark.parametrize("key", ["model.betta", "data.backbone", "model.backbone.lora.rank", "model.optimizer.eta"])
def test_a_key_that_does_not_exist_is_noticed(key: str):
    assert not exists(key)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_key_exists(page: Path):
    assert [key for key in keys_of(page) if not exists(key)] == []


@pytest.mark.parametrize("page", [*MIGRATING, ROOT / "docs/troubleshooting.md"], ids=lambda page: page.stem)
def test_these_pages_name_keys(page: Path):
    assert len(keys_of(page)) > 30


def metrics_of(page: Path) -> set[str]:
    """What is named with the stage that it is logged under."""
    return set(re.findall(r"`((?:train|val|rollout|time|data)/[\w/]+)`", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", sorted(LOGGED))
def test_the_glossary_has_what_is_logged(name: str):
    assert f"`{name}`" in METRICS


@pytest.mark.parametrize("name", ["troubleshooting", "path", "watching"])
def test_the_glossary_has_what_other_pages_name(name: str):
    named = {metric for metric in metrics_of(ROOT / f"docs/{name}.md") if not metric.endswith(("_held_out", "/SOURCE"))}
    assert len(named) > 3
    bare = {metric: metric.partition("/")[2] for metric in named}
    assert [metric for metric in named if f"`{metric}`" not in METRICS and f"`{bare[metric]}`" not in METRICS] == []


@pytest.mark.parametrize("page", MIGRATING, ids=lambda page: page.stem)
def test_every_row_says_what_is_here(page: Path):
    """Three columns: their option, our key or `none` (then why, or what instead), and what differs."""
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|(?: (.*?) ?\|)?$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 40
    assert [row for row in rows if row[1] == ""] == []


@pytest.mark.parametrize("page", MIGRATING, ids=lambda page: page.stem)
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


@pytest.mark.parametrize("page", MIGRATING, ids=lambda page: page.stem)
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
