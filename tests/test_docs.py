"""The pages say what is true: links lead somewhere, commands and configs exist, no loss or metric is left out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from lit_rlhf import losses
from lit_rlhf.cli import BESIDE, TRAINING
from lit_rlhf.losses import reward
from lit_rlhf.metrics.pairs import PAIR_METRICS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DPO = (ROOT / "docs/algorithms/dpo.md").read_text()
LOSSES = [
    name for name in losses.__all__ if name.endswith("_loss") and vars(losses)[name].__module__ != reward.__name__
]


def row(page: str, name: str) -> list[str]:
    """The cells of the table row that begins with a name."""
    (line,) = re.findall(rf"^\| `{re.escape(name)}`.*$", page, flags=re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_configs_exist(page: Path):
    text = page.read_text()
    assert set(re.findall(r"(?:python -m lit_rlhf|^lit-rlhf) ([a-z]+)", text, re.MULTILINE)) <= {*TRAINING, *BESIDE}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for line in re.findall(r"^make ([a-z -]+)", text, re.MULTILINE) for word in line.split()} <= targets
    assert [name for name in re.findall(r"configs/(?!x\.)[\w/]+\.yaml", text) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_explained_with_its_options(name: str):
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    options = [x.name for x in parameters if x.kind is inspect.Parameter.KEYWORD_ONLY and x.name != "beta"]
    assert re.findall(r"`(\w+)`", row(DPO, name)[2]) == options


@pytest.mark.parametrize("name", ["loss", *PAIR_METRICS, "grad_norm", "lr", "tokens_per_second"])
def test_every_metric_is_explained(name: str):
    assert f"`{name}`" in DPO


def test_every_function_named_in_the_tables_exists():
    named = set(re.findall(r"`lit_rlhf\.losses\.(\w+)`", DPO)) - {"terms"}
    assert named
    assert named <= set(losses.__all__)
