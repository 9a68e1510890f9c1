"""Checkpoints on the command line: damaged ones, foreign ones, a full disk, SIGTERM, and what they hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from lit_rlhf.callbacks.checkpoints import StepCheckpoint
from lit_rlhf.checkpoints.reading import read
from lit_rlhf.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the folder of a finished run."""
    return Path(shutil.copytree(finished_run, tmp_path / "dpo"))


def fails(capsys, fit, *words):
    with pytest.raises(SystemExit) as end:
        fit(*words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def test_the_newest_whole_one_is_gone_on_from(run, fit, caplog):
    cut(run / "checkpoints" / "last.ckpt")
    with caplog.at_level("INFO"):
        fit(run, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert "last.ckpt cannot be used" in caplog.text
    assert f"going on from {run / 'checkpoints' / 'step-12.ckpt'}" in caplog.text
    assert read(run / "checkpoints" / "last.ckpt")["global_step"] == 18
    assert "interrupted" not in (run / "README.md").read_text()


def test_one_that_was_named_is_refused_instead(run, fit, capsys):
    last = run / "checkpoints" / "last.ckpt"
    cut(last)
    said = fails(capsys, fit, run, f"--ckpt_path={last}")
    assert f"error: the checkpoint {last} cannot be used: it has" in said
    assert f"can be used: {run / 'checkpoints' / 'step-12.ckpt'}" in said


def test_validation_takes_the_newest_whole_one_too(run, config_file, capsys, caplog):
    cut(run / "checkpoints" / "last.ckpt")
    with caplog.at_level("INFO"):
        main(["validate", "--config", str(config_file), f"--trainer.default_root_dir={run}", "--ckpt_path=last"])
    assert "step-12.ckpt" in caplog.text
    assert "val/loss" in capsys.readouterr().out


def test_auto_begins_and_goes_on_by_the_same_words(fit, tmp_path):
    words = (tmp_path / "dpo", "--ckpt_path=auto")
    fit(*words, "--trainer.max_epochs=1")
    fit(*words, "--trainer.max_epochs=2")
    assert not (tmp_path / "dpo-2").exists()
    assert read(tmp_path / "dpo" / "checkpoints" / "last.ckpt")["global_step"] == 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.backbone.lora.r=8",), "another model or adapter"),
        (("--model=lit_rlhf.RewardModule",), "another model or adapter"),
        (("--model.backbone.name_or_path={other}",), "was trained on the base '{base}'"),
        (("--data.tokenizer={tokenizer}",), "was trained with the tokenizer '{base}' and this run has '{tokenizer}'"),
    ],
)
def test_foreign_ones_are_refused(run, fit, capsys, tiny_llama, tiny_tokenizer, tmp_path, words, said):
    tokenizer = type(tiny_tokenizer)(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<new>"
    )
    tokenizer.chat_template = tiny_tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    names = {"base": tiny_llama(), "other": tiny_llama(seed=5), "tokenizer": tmp_path / "tokenizer"}
    words = [word.format(**names) for word in words]
    assert said.format(**names) in fails(capsys, fit, run, *words, "--ckpt_path=last", "--trainer.max_epochs=3")


def test_a_full_disk_stops_with_the_last_good_one_named(fit, tmp_path, capsys, monkeypatch):
    sound = StepCheckpoint.on_validation_end
    usage = namedtuple("usage", "total used free")

    def fills_up(self, trainer, pl_module):
        if trainer.global_step == 9:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5, 5))
        sound(self, trainer, pl_module)

    monkeypatch.setattr(StepCheckpoint, "on_validation_end", fills_up)
    said = fails(capsys, fit, tmp_path / "dpo")
    folder = tmp_path / "dpo" / "checkpoints"
    assert "step-9.ckpt was not written (No space left on device): it needs" in said
    assert f"and 5 are free in {folder}" in said
    assert f"last good checkpoint: {os.path.relpath(folder / 'last.ckpt')}" in said
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step-6.ckpt"]
    assert read(folder / "last.ckpt")["global_step"] == 6
    assert not (tmp_path / "dpo" / "adapter_model.safetensors").exists()


def test_the_frozen_base_is_not_in_it(finished_run, tiny_llama):
    """Adapter and both moments of it: three times the adapter, and some kilobytes of everything else."""
    checkpoint = read(finished_run / "checkpoints" / "last.ckpt")
    assert all("lora_" in name or name.startswith(("train_means", "eval_means")) for name in checkpoint["state_dict"])
    adapter = (finished_run / "adapter_model.safetensors").stat().st_size
    assert (finished_run / "checkpoints" / "last.ckpt").stat().st_size < 3 * adapter + 150_000
    assert checkpoint["base"]["name"] == str(tiny_llama())
    assert checkpoint["origin"]["algorithm"] == "DPOModule"


def test_sigterm_saves_and_leaves(config_file, tmp_path):
    """The whole command, as a scheduler sees it."""
    folder = tmp_path / "dpo"
    words = ["fit", "--config", str(config_file), f"--trainer.default_root_dir={folder}", "--trainer.max_epochs=1000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_rlhf", *words]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "SIGTERM: saving at the end of this step" in said
    assert "(go on from it with --ckpt_path=dpo/checkpoints/last.ckpt)" in said
    done = read(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert f"interrupted after {done} steps" in (folder / "README.md").read_text()
