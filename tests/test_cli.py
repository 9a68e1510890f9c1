"""The command line's door: commands, help and errors."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from lit_rlhf import cli

ALL = [*cli.TRAINING, *cli.BESIDE]


def test_help_names_every_command_in_one_line_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom lit_rlhf.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n"
        "    assert end.code == 0\nassert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ALL:
        assert len([line for line in done.stdout.splitlines() if line.split()[:1] == [command]]) == 1


@pytest.mark.parametrize("command", cli.BESIDE)
def test_every_command_beside_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    takes = {"preview": "FILE", "estimate": "FILE", "completion": "bash"}
    assert takes.get(command, "RUN") in capsys.readouterr().out


def test_module_is_a_program():
    done = subprocess.run([sys.executable, "-m", "lit_rlhf", "fitt"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: unknown command 'fitt'; did you mean 'fit'? There are: {', '.join(ALL)}\n"


def refused(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_word_that_resembles_no_command_gets_no_advice(capsys):
    assert refused(capsys, "zzz") == f"error: unknown command 'zzz'; There are: {', '.join(ALL)}\n"


def test_a_configuration_alone_is_told_what_it_lacks(capsys):
    assert "as in: lit-rlhf fit --config mine.yaml" in refused(capsys, "mine.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate"], "the following arguments are required: RUN"),
        (["generate", "x", "--temperature", "hot"], "--temperature: invalid float value: 'hot'"),
        (["generate", "x", "--prom", "a"], "unrecognized arguments: --prom a"),  # no half words
        (["completion", "csh"], "invalid choice: 'csh'"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(words, message, capsys):
    said = refused(capsys, *words)
    assert message in said
    assert said.endswith(f"(lit-rlhf {words[0]} --help says what there is)\n")
    assert said.count("\n") == 1


def test_no_command_shows_the_help_and_fails(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2
    assert "to train\n  fit " in capsys.readouterr().out


def stand_in(error: Exception) -> SimpleNamespace:
    def run(args):
        raise error

    return SimpleNamespace(__doc__="Stands in.", add_arguments=lambda parser: None, run=run)


def raised(monkeypatch, error, *words):
    monkeypatch.setattr(cli, "import_module", lambda name: stand_in(error))
    with pytest.raises(SystemExit) as end:
        cli.main(["export", *words])
    assert end.value.code == 2


def test_an_error_is_one_line_and_its_notes(monkeypatch, capsys):
    error = FloatingPointError("the loss is not finite")
    error.add_note("last good checkpoint: here")
    raised(monkeypatch, error)
    assert capsys.readouterr().err == "error: the loss is not finite\nlast good checkpoint: here\n"


def test_an_error_of_a_data_worker_keeps_its_last_line(monkeypatch, capsys):
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback ...\nValueError: a.jsonl:3: no 'chosen'"
    )
    raised(monkeypatch, ValueError(text))
    assert capsys.readouterr().err == "error: a.jsonl:3: no 'chosen'\n"


@pytest.mark.parametrize("how", ["word", "variable"])
def test_debug_shows_the_traceback(monkeypatch, how):
    monkeypatch.setattr(cli, "import_module", lambda name: stand_in(ValueError("wrong")))
    if how == "variable":
        monkeypatch.setenv("LIT_RLHF_DEBUG", "1")
    with pytest.raises(ValueError, match="wrong"):
        cli.main(["export", "--debug"] if how == "word" else ["export"])


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "import_module", lambda name: stand_in(KeyError("ours")))
    with pytest.raises(KeyError):
        cli.main(["export"])


def test_own_modules_in_the_working_directory_are_found_by_the_console_script_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["elsewhere"])
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert sys.path == ["elsewhere", str(tmp_path)]  # behind everything, so that no file here hides a library
