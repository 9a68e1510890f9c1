"""What a shell completes, asked of the shells themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lit_rlhf import cli
from lit_rlhf.commands.completion import flags, training_keys


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of each shell."""
    folder = tmp_path_factory.mktemp("scripts")

    def make(shell: str) -> Path:
        file = folder / shell
        if not file.exists():
            with pytest.MonkeyPatch.context() as patch, file.open("w") as out:
                patch.setattr("sys.stdout", out)
                cli.main(["completion", shell])
        return file

    return make


def run(shell, *words, cwd=None):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def bash(script, *words, cwd=None):
    typed = " ".join(f"'{word}'" for word in words)
    code = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _lit_rlhf; echo ${{COMPREPLY[@]}}"
    return run("bash", "--norc", "-c", code, cwd=cwd)


def fish(script, line, cwd=None):
    return run("fish", "--no-config", "-c", f"source {script}; complete -C '{line}'", cwd=cwd)


def test_bash_completes_commands_keys_and_files(scripts, tmp_path):
    (tmp_path / "mine.yaml").touch()
    script = scripts("bash")
    assert bash(script, "lit-rlhf", "") == [*cli.TRAINING, *cli.BESIDE]
    assert bash(script, "lit-rlhf", "ex") == ["export"]
    assert bash(script, "lit-rlhf", "fit", "--trainer.max_e") == ["--trainer.max_epochs"]
    assert bash(script, "lit-rlhf", "fit", "--model.backbone.lora.r") == ["--model.backbone.lora.r"]
    assert bash(script, "lit-rlhf", "generate", "--pro") == ["--prompt", "--prompts"]
    assert bash(script, "lit-rlhf", "fit", "--config", "mi", cwd=tmp_path) == ["mine.yaml"]
    assert bash(script, "lit-rlhf", "fit", "--config", "=", "mi", cwd=tmp_path) == ["mine.yaml"]
    assert bash(script, "lit-rlhf", "fit", "--config", "=", cwd=tmp_path) == ["mine.yaml"]


def test_zsh_takes_the_script(scripts):
    assert run("zsh", "-f", "-c", f"source {scripts('zsh')} && echo ${{_comps[lit-rlhf]:+known}}") == ["known"]


def test_fish_completes_commands_keys_and_files(scripts, tmp_path):
    (tmp_path / "mine.yaml").touch()
    script = scripts("fish")
    assert fish(script, "lit-rlhf expo")[0] == "export"
    assert fish(script, "lit-rlhf fit --trainer.max_e")[0] == "--trainer.max_epochs"
    assert fish(script, "lit-rlhf generate --prompts mi", cwd=tmp_path) == ["mine.yaml"]


def test_every_flag_of_a_command_is_known():
    assert {"--kl", "--prompts", "--help"} <= {*flags("generate")}
    assert {"--data.train", "--model.losses", "--model.beta", "--trainer.devices", "--config"} <= {*training_keys()}
    assert all(re.fullmatch(r"--[a-z][\w.]*\+?", key) for key in training_keys())
