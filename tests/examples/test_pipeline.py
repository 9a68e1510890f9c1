"""The pipeline goes from SFT to one page, step by step, and again from where it was stopped."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_rlhf.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "pipeline.py"
SHORT = ("--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.callbacks=null")
STEPS = [*["fit"] * 4, *["generate"] * 4, "score", "report"]


@pytest.fixture
def pipeline(monkeypatch):
    """``pipeline(*words)``: the example, whose commands run in this process; ``commands`` are those that did."""
    commands = []

    def run(command, check):
        assert command[:3] == [sys.executable, "-m", "lit_rlhf"]
        commands.append(command[3:])
        try:
            main(command[3:])
        except SystemExit as end:
            return SimpleNamespace(returncode=end.code)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    call = runpy.run_path(str(EXAMPLE))["main"]
    call.commands = commands
    return call


def test_the_whole_path_and_again(pipeline, tmp_path, capsys):
    folder = tmp_path / "it"
    table = pipeline(["--folder", str(folder), "--", *SHORT])
    assert [command[0] for command in pipeline.commands] == STEPS
    assert [row["model"] for row in table] == ["base", "sft", "dpo", "ppo"]
    base, sft, dpo, ppo = table
    assert base["KL from base (nats)"] == 0
    assert sft["true score"] != base["true score"]
    assert all(-4 <= row["true score"] <= 3 and row["standard error"] > 0 for row in table)
    said = capsys.readouterr().out
    assert all(f"$ python -m lit_rlhf {step} " in said for step in STEPS)
    assert "KL from base (nats)" in said
    page = (folder / "report.html").read_text()
    assert "The true preference" in page
    assert str(sft["true score"]) in page
    titles = [table["title"] for table in json.loads((folder / "comparison.json").read_text())]
    assert titles == ["The true preference", "Answers"]

    # the later runs began with what SFT had learnt, and PPO listened to this reward model
    configs = {name: (folder / name / "config.yaml").read_text() for name in ("reward", "dpo", "ppo")}
    assert all(f"adapter: {folder / 'sft'}" in text for text in configs.values())
    assert f"model: {folder / 'reward'}" in configs["ppo"]

    pipeline.commands.clear()
    lines = (folder / "finished.txt").read_text().splitlines()
    (folder / "finished.txt").write_text("\n".join(lines[:6]) + "\n")  # as if it had been stopped in the third `generate`
    (folder / "answers_dpo.jsonl").write_text('{"prompt": "cut o')
    assert pipeline(["--folder", str(folder), "--", *SHORT])[1:3] == [sft, dpo]
    assert [command[0] for command in pipeline.commands] == STEPS[6:]


def test_a_step_that_fails_ends_it(pipeline, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        pipeline(["--folder", str(tmp_path), "--", "--model.nothing=1"])
    assert end.value.code == 2
    assert len(pipeline.commands) == 1
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "finished.txt").exists()
