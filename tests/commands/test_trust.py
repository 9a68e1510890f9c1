"""A configuration names what it may; everything else is refused before it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from lit_rlhf.cli import main
from lit_rlhf.commands.trust import ALLOWED, limit_names

MODULE = """
from pathlib import Path
Path({marker!r}).touch()
from lightning.pytorch import Callback
class Watch(Callback):
    pass
def agrees(responses):
    return [1.0 for _ in responses]
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported; returns a test for the mark."""
    marker = tmp_path / "imported"
    (tmp_path / "strange_module.py").write_text(MODULE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    return marker.exists


def refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return capsys.readouterr().err.strip()


CALLBACK = {"trainer": {"callbacks": [{"class_path": "strange_module.Watch"}]}}
OPTIMIZER = {"model": {"init_args": {"optimizer": {"class_path": "strange_module.agrees"}}}}
MODEL = {"model": {"class_path": "strange_module.Watch"}}


@pytest.mark.parametrize("overlay", [CALLBACK, OPTIMIZER, MODEL])
@pytest.mark.parametrize("command", ["fit", "predict", "preview"])
def test_names_of_strangers_are_refused_before_they_are_imported(
    command, overlay, config_file, tmp_path, stranger, capsys
):
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump(overlay))
    said = refused([command, "--config", str(config_file), "--config", str(file)], capsys)
    name = "strange_module.agrees" if overlay is OPTIMIZER else "strange_module.Watch"
    assert said.startswith(f"error: '{name}' is not of the packages that a configuration may name (lit_rlhf, ")
    assert said.endswith("if you trust it, add --trust strange_module")
    assert not stranger()


@pytest.mark.parametrize(
    "name",
    ["os.system", "subprocess.run", "builtins.exec", "torch.hub.load", "lightning.pytorch.cli.instantiate_class"],
)
def test_a_way_to_run_anything_is_no_reward(name, config_file, tmp_path, capsys):
    reward = {"class_path": "lit_rlhf.rewards.FunctionReward", "init_args": {"function": name}}
    module = {"class_path": "lit_rlhf.PPOModule", "init_args": {"backbone": {}, "rewards": [{"reward": reward}]}}
    file = tmp_path / "ppo.yaml"
    file.write_text(yaml.safe_dump({"model": module}))
    said = refused(["fit", "--config", str(file)], capsys)
    assert f"'{name}' is not of the packages that a configuration may name" in said


def test_an_allowed_package_is_no_way_around(config_file, tmp_path, capsys):
    """What a module of ours imports for itself is still somebody else's."""
    file = tmp_path / "overlay.yaml"
    optimizer = {"class_path": "lit_rlhf.cli.os.system"}
    file.write_text(yaml.safe_dump({"model": {"init_args": {"optimizer": optimizer}}}))
    said = refused(["fit", "--config", str(config_file), "--config", str(file)], capsys)
    assert "is not of the packages that a configuration may name" in said


@pytest.mark.parametrize("how", ["flag", "flag=", "variable"])
def test_the_user_may_trust_a_module(how, config_file, tmp_path, stranger):
    """In a process of its own, because trust lasts as long as the process."""
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump(CALLBACK))
    words = {"flag": ["--trust", "strange_module"], "flag=": ["--trust=other,strange_module"], "variable": []}[how]
    code = (
        f"import os, sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        f"os.environ['LIT_RLHF_TRUST'] = {'strange_module' if how == 'variable' else ''!r}\n"
        "from lit_rlhf.cli import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "fit", *words, "--config", str(config_file), "--config", str(file)]
    command += ["--trainer.fast_dev_run=1", "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert stranger()
    assert "trust" not in done.stdout.replace("strange_module", "")


def test_a_configuration_cannot_trust_anyone(config_file, tmp_path, stranger, capsys):
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump({"trust": "strange_module", **CALLBACK}))
    refused(["fit", "--config", str(config_file), "--config", str(file)], capsys)
    assert not stranger()


@pytest.mark.parametrize("words", [["--trust"], ["--trust="], ["--trust", "--config"], ["--trust", "a/b.py"]])
def test_trust_needs_a_name(words):
    with pytest.raises(ValueError, match=r"--trust"):
        limit_names([*words, "x"][: len(words)])


def test_other_words_stay_as_they_are():
    assert limit_names(["a", "--trust", "b", "--c=--trust", "d"]) == ["a", "--c=--trust", "d"]


def test_no_package_is_allowed_that_runs_what_it_is_given():
    assert not {"os", "sys", "builtins", "torch", "lightning", "importlib", "subprocess"} & set(ALLOWED)
