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
    """``pipeline(*words)``: the example, whose commands run in this process; ``commands`` are those that did.

    Where ``stand_in`` is set it takes the place of the command line.
    """
    commands = []

    def run(command, check):
        assert command[:3] == [sys.executable, "-m", "lit_rlhf"]
        commands.append(command[3:])
        try:
            call.stand_in(command[3:])
        except SystemExit as end:
            return SimpleNamespace(returncode=end.code)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    call = runpy.run_path(str(EXAMPLE))["main"]
    call.commands, call.stand_in = commands, main
    return call


def value_of(words, flag):
    return Path(words[words.index(flag) + 1])


def answers(words):
    """Stands in for the command line: the base answers wrongly, SFT every second question rightly, the others all."""
    if words[0] == "generate":
        out = value_of(words, "--out")
        every = {"answers_base": 10**6, "answers_sft": 2}.get(out.stem, 1)
        asked = [f"What is {number} plus 1?" for number in range(1, 9)]
        texts = [
            f"Sure! {number + 1}." if at % every == every - 1 or every == 1 else "Blue."
            for at, number in enumerate(range(1, 9))
        ]
        rows = [
            {"prompt": [{"role": "user", "content": prompt}], "response": text, "length": 2 * len(text.split())}
            | ({} if "--reference" in words else {"kl": 1.5})
            for prompt, text in zip(asked, texts, strict=True)
        ]
        out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif words[0] == "score":
        scores = [float(at // 8) for at in range(32)]
        value_of(words, "--out").write_text("".join(json.dumps({"row": "", "score": score}) + "\n" for score in scores))


def test_every_step_is_printed_done_once_and_compared(pipeline, tmp_path, capsys):
    pipeline.stand_in = answers
    folder = tmp_path / "it"
    base, sft, dpo, ppo = pipeline(["--folder", str(folder)])
    assert [command[0] for command in pipeline.commands] == STEPS
    assert [row["true score"] for row in (base, sft, dpo, ppo)] == [0.0, 1.5, 3.0, 3.0]
    assert [row["right (%)"] for row in (base, sft, dpo, ppo)] == [0, 50, 100, 100]
    assert [row["better than sft (%)"] for row in (base, sft, dpo, ppo)] == [25, None, 75, 75]
    assert [row["reward model's score"] for row in (base, sft, dpo, ppo)] == [0, 1, 2, 3]
    assert [row["KL from base (nats)"] for row in (base, sft, dpo, ppo)] == [0, 1.5, 1.5, 1.5]
    assert [row["length (tokens)"] for row in (base, ppo)] == [2, 4]
    assert dpo["standard error"] == 0 < sft["standard error"]
    said = capsys.readouterr().out
    assert all(f"$ python -m lit_rlhf {step} " in said for step in STEPS)
    assert "KL from base (nats)" in said
    table, samples = json.loads((folder / "comparison.json").read_text())
    assert table["rows"] == [base, sft, dpo, ppo]
    assert samples["rows"][0] == {
        "prompt": "What is 1 plus 1?",
        "base": "Blue.",
        "sft": "Blue.",
        "dpo": "Sure! 2.",
        "ppo": "Sure! 2.",
    }

    fits = {Path(command[2]).stem: command for command in pipeline.commands if command[0] == "fit"}
    begin = f"--model.backbone.adapter={folder / 'sft'}"
    assert [name for name, command in fits.items() if begin in command] == ["reward", "dpo", "ppo"]
    assert any(f"model: {folder / 'reward'}" in word for word in fits["ppo"])
    assert all(command[-1] == "--ckpt_path=auto" for command in fits.values())

    pipeline.commands.clear()
    lines = (folder / "finished.txt").read_text().splitlines()
    (folder / "finished.txt").write_text("\n".join(lines[:6]) + "\n")  # stopped in the third `generate`
    (folder / "answers_dpo.jsonl").write_text('{"prompt": "cut o')
    assert pipeline(["--folder", str(folder)]) == [base, sft, dpo, ppo]
    assert [command[0] for command in pipeline.commands] == STEPS[6:]


@pytest.mark.slow
def test_the_whole_path_and_again(pipeline, tmp_path, capsys):
    folder = tmp_path / "it"
    table = pipeline(["--folder", str(folder), "--", *SHORT])
    assert [command[0] for command in pipeline.commands] == STEPS
    assert [row["model"] for row in table] == ["base", "sft", "dpo", "ppo"]
    base, sft, dpo, _ = table
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
    (folder / "finished.txt").write_text(
        "\n".join(lines[:6]) + "\n"
    )  # as if it had been stopped in the third `generate`
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
