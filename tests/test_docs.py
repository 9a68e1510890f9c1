"""The pages say what is true: links lead somewhere, commands and configs exist, no loss or metric is left out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from matplotlib.mathtext import MathTextParser

from lit_rlhf import SFTModule, losses
from lit_rlhf.cli import BESIDE, TRAINING
from lit_rlhf.losses import kl, policy_gradient, reward, values
from lit_rlhf.losses.reward_terms import GIVEN, RewardTerm
from lit_rlhf.metrics.calibration import CALIBRATION_METRICS
from lit_rlhf.metrics.moments import MOMENT_METRICS
from lit_rlhf.metrics.pairs import PAIR_METRICS
from lit_rlhf.metrics.scores import SCORE_METRICS
from lit_rlhf.metrics.texts import TEXT_METRICS

MATHTEXT = MathTextParser("path")
ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DPO = (ROOT / "docs/algorithms/dpo.md").read_text()
REWARD = (ROOT / "docs/algorithms/reward.md").read_text()
PPO = (ROOT / "docs/algorithms/ppo.md").read_text()
SFT = (ROOT / "docs/algorithms/sft.md").read_text()
OF_ROLLOUTS = {module.__name__ for module in (kl, policy_gradient, values)}
LOSSES = [name for name in losses.__all__ if name.endswith("_loss")]
REWARD_METRICS = [*SCORE_METRICS, *MOMENT_METRICS, *CALIBRATION_METRICS, "loss", "grad_norm", "lr", "tokens_per_second"]


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
    loss = vars(losses)[name]
    parameters = inspect.signature(loss).parameters.values()
    options = [x.name for x in parameters if x.kind is inspect.Parameter.KEYWORD_ONLY and x.name != "beta"]
    page = REWARD if loss.__module__ == reward.__name__ else PPO if loss.__module__ in OF_ROLLOUTS else DPO
    assert re.findall(r"`(\w+)`", row(page, name)[2]) == options


@pytest.mark.parametrize("name", LOSSES)
def test_the_kinds_of_data_that_a_reward_loss_takes_are_told(name: str):
    loss = vars(losses)[name]
    if loss.__module__ == reward.__name__:
        unit = RewardTerm(loss).unit
        kinds = [kind for kind, units in GIVEN.items() if unit in units and ("ties" not in name or kind == "graded")]
        told = row(REWARD, name)[3].split(", ")
        assert set(told) <= set(kinds)
        assert told[-1] == kinds[-1]


@pytest.mark.parametrize("name", ["loss", *PAIR_METRICS, "grad_norm", "lr", "tokens_per_second"])
def test_every_metric_is_explained(name: str):
    assert f"`{name}`" in DPO


@pytest.mark.parametrize("name", REWARD_METRICS)
def test_every_metric_of_reward_models_is_explained(name: str):
    assert f"`{name}`" in REWARD


@pytest.mark.parametrize("name", [*TEXT_METRICS, "perplexity", "grad_norm", "lr", "tokens_per_second"])
def test_every_metric_of_imitation_is_explained(name: str):
    assert f"`{name}`" in SFT


@pytest.mark.parametrize("name", ["average", "label_smoothing"])
def test_every_setting_of_imitation_has_its_default_on_the_page(name: str):
    assert row(SFT, name)[1].strip("`") == str(inspect.signature(SFTModule).parameters[name].default)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_what_a_link_to_code_names_is_in_that_file(page: Path):
    """A link reads [`Class.method`](file.py): the file defines the last part of the name."""
    links = re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", page.read_text())
    code = {name: (page.parent / file).read_text() for name, file in links}
    missing = [name for name in code if not re.search(rf"^ *(def|class) {name.split('.')[-1]}\b", code[name], re.M)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_formulas_can_be_set(page: Path):
    """Mathtext reads a part of LaTeX. What Markdown would take for its own is left out, as are columns of tables."""
    text = re.sub(r"```.*?```|`.*?`", "", page.read_text(), flags=re.DOTALL)
    formulas = re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, flags=re.DOTALL)
    for formula in (shown or inline for shown, inline in formulas):
        assert not re.search(r"\n|[|*<]|\\[^a-zA-Z ]", formula), formula
        MATHTEXT.parse(f"${formula}$")


@pytest.mark.parametrize("page", [DPO, REWARD, PPO, SFT], ids=["dpo", "reward", "ppo", "sft"])
def test_formulas_are_numbered_in_order_and_only_known_numbers_are_referred_to(page: str):
    numbers = [int(number) for number in re.findall(r"\\qquad \((\d+)\)\$\$", page)]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert len(numbers) > 4
    assert {int(number) for number in re.findall(r"(?<![\w`.])\((\d{1,2})\)", page)} <= set(numbers)
