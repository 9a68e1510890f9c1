"""The short help is true: its keys exist, take the values it shows, and its examples are configurations."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_rlhf import cli
from lit_rlhf.commands.training_help import KEYS, text

ROOT = Path(__file__).parents[2]
APART = ("--config", "--print_config", "--trust", "--debug")
GIVEN = [key.split() for group in KEYS.values() for key in group if not key.startswith(APART)]
MENTIONED = [word for group in KEYS.values() for does in group.values() for word in re.findall(r"--[a-z][\w.]+", does)]

ROLLOUTS = ("ppo", "grpo", "online_dpo")
OF_ROLLOUTS = {"--data.token_budget": "--model.updates.token_budget", "--data.max_length": "--data.max_prompt_length"}


def printed(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", *words, "--print_config"])
    said = capsys.readouterr()
    assert end.value.code in (0, None), said.err
    return yaml.safe_load(said.out)


def value_at(config, key):
    for part in key.removeprefix("--").split("."):
        config = config["init_args"] if part not in config else config
        config = config[part]
    return config


@pytest.mark.parametrize("name", ["sft", "dpo", "reward", "ppo", "grpo", "online_dpo"])
def test_every_key_is_taken_by_every_algorithm(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [[OF_ROLLOUTS.get(key, key) if name in ROLLOUTS else key, value] for key, value in GIVEN]
    words = [f"{key}={value}" for key, value in given]
    config = printed(capsys, "--config", str(ROOT / f"configs/{name}.yaml"), *words)
    for key, value in given:
        found = value_at(config, key)
        if key == "--trainer.logger":
            found = found["class_path"].rpartition(".")[2]
        told = yaml.safe_load(value)
        assert found == (float(told) if isinstance(found, float) else told), key


def test_keys_that_are_mentioned_beside_exist(capsys):
    values = {"data.validation": "a", "data.test": "a", "trainer.max_time": "00:04:00:00"}
    mentioned = [key for key in MENTIONED if key not in OF_ROLLOUTS.values()]
    words = [f"{key}={values.get(key.removeprefix('--'), 2)}" for key in mentioned]
    printed(capsys, "--config", str(ROOT / "configs/dpo.yaml"), *words)
    assert len(mentioned) > 4
    assert {*OF_ROLLOUTS.values()} < {*MENTIONED}


@pytest.mark.parametrize("command", cli.TRAINING)
def test_it_comes_at_once_and_fits_the_screen(command):
    code = (
        f"import sys\nfrom lit_rlhf.cli import main\nmain(['{command}', '--help'])\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == text(command)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) <= 48


def test_the_configurations_of_its_examples_are_there():
    named = re.findall(r"configs/[\w/]+\.yaml", text("fit"))
    assert len(named) == 3
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_all_keys_are_there_when_asked_for(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "--help=all"])
    assert end.value.code == 0
    assert "--trainer.detect_anomaly" in capsys.readouterr().out
