"""The last screen."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import torch
from rich.console import Console

from lit_rlhf.callbacks.bands import Band, Limit
from lit_rlhf.callbacks.health import HealthBands
from lit_rlhf.callbacks.summary import RunSummary, _shares, command


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


def test_where_nothing_has_changed_there_is_no_table(tmp_path):
    summary = RunSummary()
    summary.first = summary.last = {"val/loss": 1.0}
    console = Console(file=io.StringIO())
    console.print(summary.screen(tmp_path, "4 steps"))
    assert "held-out" not in console.file.getvalue()
    summary.last = {"val/loss": 0.5}
    console.print(summary.screen(tmp_path, "4 steps"))
    assert "held-out" in console.file.getvalue()


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


class Base:
    name_or_path = "somewhere/tiny"


def test_of_a_run_with_rollouts_it_says_the_score_at_what_kl_the_time_and_the_warnings(iterate, rollouts, capsys):
    class Answering(rollouts):
        def __init__(self, logged):
            super().__init__(logged)
            self.model = torch.nn.Module()
            self.model.base = Base()

        def validation_step(self, batch, batch_idx):
            self.log_dict({"val/kl": self.weight.norm(), "val/entropy": self.weight.sum()}, batch_size=len(batch))
            return super().validation_step(batch, batch_idx)

    band = Band("the KL is high", [Limit("rollout/kl", above=5.0)], "Raise it.", patience=1)
    options = {"limit_val_batches": 1.0, "num_sanity_val_steps": -1, "num": 4}
    iterate(Answering([{"rollout/kl": 9.0}] * 4), RunSummary(), HealthBands([band]), **options)
    out = capsys.readouterr().out
    assert "done: 4 iterations in 0:0" in out
    assert "after (iteration 4)" in out
    assert re.search(r"score +0 +1 ", out)
    assert out.index(" score ") < out.index(" kl ") < out.index(" entropy ")
    assert re.search(r"time +rollout 0:00 \(\d+%\), update 0:00 \(\d+%\)", out)
    assert re.search(r"warning +iteration 1: the KL is high: rollout/kl is 9", out)


def test_shares_of_time():
    assert _shares({"rollout": 90.0, "update": 30.0}) == "rollout 1:30 (75%), update 0:30 (25%)"
