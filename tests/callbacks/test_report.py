"""The report at the end of a run, and what it is written from."""

from __future__ import annotations

import json

import pytest
from lightning.pytorch import Trainer

from lit_rlhf.callbacks import report
from lit_rlhf.callbacks.health import HealthBands
from lit_rlhf.callbacks.held_out import HeldOutRows
from lit_rlhf.callbacks.metrics_file import MetricsFile
from lit_rlhf.callbacks.report import Report, command_line


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def test_at_the_end(train, policy, tmp_path):
    bands = HealthBands()
    bands.warnings.append("step 1: too hot")
    train(policy(), bands, Report(), logger=MetricsFile(tmp_path))
    told = facts(tmp_path)
    assert (told["state"], told["algorithm"], told["warnings"]) == ("finished", "Policy", ["step 1: too hot"])
    assert told["done"].startswith("step ")
    assert told["device"].startswith("cpu")
    assert told["versions"].keys() >= {"python", "torch", "lightning", "transformers", "peft"}
    assert "too hot" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob(".*.part"))


def test_of_an_interrupted_run(train, policy, tmp_path):
    with pytest.raises(KeyError):
        train(policy(2, KeyError("x")), Report(), logger=MetricsFile(tmp_path))
    assert facts(tmp_path)["state"] == "KeyError"
    assert "Ended early (KeyError) after step 2" in (tmp_path / "report.html").read_text()


def test_a_killed_run_leaves_what_a_report_needs(train, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(Report, "_finish", lambda *_: None)
    train(policy(), Report(), logger=MetricsFile(tmp_path))
    assert facts(tmp_path)["state"] == "running"
    assert facts(tmp_path)["warnings"] is None, "nobody watched"


def test_a_full_disk_takes_the_report_and_not_the_run(train, policy, tmp_path, monkeypatch):
    def full(folder):
        raise OSError("no space left")

    monkeypatch.setattr(report, "write_report", full)
    with pytest.warns(UserWarning, match="report could not be written: no space left"):
        train(policy(), Report(), logger=MetricsFile(tmp_path))


def test_nothing_is_left_by_a_trial(train, policy, tmp_path):
    train(policy(), Report(), fast_dev_run=True)
    assert not (tmp_path / "run.json").exists()
    assert not (tmp_path / "report.html").exists()


def test_the_first_rank_alone_writes(train, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    train(policy(), Report(), HeldOutRows())
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".html", ".jsonl")] == []


def test_a_resumed_run_counts_on(train, policy, tmp_path):
    again = Report()
    again.load_state_dict({"started": "2020-02-02 02:02 UTC", "seconds": 5000.0})
    train(policy(), again, logger=MetricsFile(tmp_path))
    assert facts(tmp_path)["started"] == "2020-02-02 02:02 UTC"
    assert 5000 <= facts(tmp_path)["seconds"] < 5600
    assert again.state_dict()["seconds"] >= 5000


def test_calibration_of_a_reward_model(train, reward, tmp_path):
    train(reward(), Report(), logger=MetricsFile(tmp_path), num_sanity_val_steps=-1)
    bins = facts(tmp_path)["reliability"]
    assert bins[0].keys() == {"low", "high", "confidence", "accuracy", "num_pairs"}
    assert "<h2>Calibration</h2>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["/x/lit_rlhf/__main__.py", "fit", "--a=b c"], "python -m lit_rlhf fit '--a=b c'"),
        (["/x/bin/lit-rlhf", "fit"], "lit-rlhf fit"),
        (["own.py", "1"], "python own.py 1"),
    ],
)
def test_what_was_typed(words, typed, monkeypatch):
    monkeypatch.setattr("sys.argv", words)
    assert command_line() == typed
