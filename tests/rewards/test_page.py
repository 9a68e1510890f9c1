"""docs/rewards.md says what is true: every ready reward with its arguments, and configurations that build."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from jsonargparse import ArgumentParser

from lit_rlhf import rewards
from lit_rlhf.commands.trust import limit_names
from lit_rlhf.rewards import WeightedReward
from lit_rlhf.rewards.answers import same_answer
from lit_rlhf.rewards.function import _ALL, _BOTH, _EACH

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
READY = sorted(
    name
    for name in rewards.__all__
    if "__call__" in vars(getattr(rewards, name))
    and not inspect.isabstract(getattr(rewards, name))
    and name != "Reward"
)


class Algorithm:
    """What takes rewards from a configuration."""

    def __init__(self, rewards: list[WeightedReward]) -> None:
        self.rewards = rewards


def cells(name: str) -> list[str]:
    (line,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
    return line.strip("|").split("|")


@pytest.mark.parametrize("name", READY)
def test_every_reward_has_a_row_with_its_arguments(name):
    arguments = list(inspect.signature(getattr(rewards, name)).parameters)
    assert re.findall(r"`(\w+)`", cells(name)[-1]) == arguments


def test_what_functions_may_name_is_told():
    told = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("| name | for each") : PAGE.index("| any column")]))
    assert {*_ALL, *_EACH, *_BOTH} <= told


def test_the_configurations_build(monkeypatch):
    module = ModuleType("my_rewards")
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], module.__dict__)
    module.brevity.__module__ = module.agrees.__module__ = "my_rewards"
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    limit_names(["--trust", "my_rewards"])
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(Algorithm, "model")
        config = parser.parse_object({"model": yaml.safe_load(block)})
        assert len(parser.instantiate(config).model.rewards) == len(yaml.safe_load(block)["rewards"])


def test_the_table_of_answers_is_true():
    rows = re.findall(r"^\| (?:numbers|texts) \|(.*)\|(.*)\|$", PAGE, re.MULTILINE)
    given = {"compare": "auto", "places": (), "tolerance": 0.0}
    for same, other in rows:
        for group in same.split(";"):
            first, *others = re.findall(r"`([^`]+)`", group)
            assert others
            assert all(same_answer(one, first, **given) for one in others)
        for group in other.split(";"):
            one, right = re.findall(r"`([^`]+)`", group)
            assert not same_answer(one, right, **given)
            assert not same_answer(right, one, **given)
