"""The last screen."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from lit_rlhf.callbacks.summary import RunSummary, command


def test_it_says_what_is_trained_what_was_learnt_where_it_lies_and_what_to_type(train, policy, tmp_path, capsys):
    summary = RunSummary()
    train(policy(), summary, num_sanity_val_steps=-1, max_epochs=2)
    out = capsys.readouterr().out
    assert re.search(r"Policy on \S+: [\d.]+k of [\d.]+k parameters are trained", out)
    before, after = summary.first["val/loss"], summary.last["val/loss"]
    assert after < before
    assert re.search(rf"loss +{before:.4g} +{after:.4g}", out)
    assert "done: 6 steps" in out
    assert "after (step 6)" in out
    assert "generate" in out


def test_without_validation_it_says_the_rest(train, policy, capsys):
    train(policy(), RunSummary(), limit_val_batches=0)
    out = capsys.readouterr().out
    assert "done: 3 steps" in out
    assert "held-out" not in out


def test_a_resumed_run_compares_with_the_beginning_of_the_first(train, policy, tmp_path):
    first = RunSummary()
    trainer = train(policy(), first, num_sanity_val_steps=-1)
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    second = RunSummary()
    train(policy(), second, num_sanity_val_steps=-1, max_epochs=2, ckpt_path=tmp_path / "cut.ckpt")
    assert second.first == first.first


def test_of_a_reward_model_it_says_how_to_ask_for_scores(train, reward, tmp_path, capsys):
    summary = RunSummary()
    train(reward(), summary, num_sanity_val_steps=-1, max_epochs=2)
    out = capsys.readouterr().out
    assert re.search(r"RewardModule on \S+: [\d.]+k of [\d.]+k parameters are trained", out)
    lines = [line.split()[1] for line in out.splitlines() if "scores/" in line or " loss " in line]
    assert [name for name in lines if name in ("scores/margin", "loss")] == ["scores/margin", "loss"], "headlines"
    assert out.index("--response") < out.index("--serve") < out.index("--merge")
    assert "generate" not in out


def test_what_to_type_works_where_the_script_is_not_on_the_path(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert command() == "lit-rlhf"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv" / "bin" / "python"))
    assert command() == ".venv/bin/python -m lit_rlhf"
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert command() == "/usr/bin/python3 -m lit_rlhf"
