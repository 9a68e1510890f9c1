"""metrics.csv: one row per step, and one file for a run and what resumes it."""

from __future__ import annotations

import torch

from lit_rlhf.callbacks.metrics_file import FILE, MetricsFile, read_metrics


def test_rows_columns_and_the_order_of_both(tmp_path):
    log = MetricsFile(tmp_path / "run")
    log.log_metrics({"train/loss": torch.tensor(0.5)}, 1)
    log.log_metrics({"train/loss": 0.25}, 2)
    log.log_metrics({"val/loss": 0.75}, 2)
    log.log_metrics({"train/loss": 0.125}, 3)
    text = (tmp_path / "run" / FILE).read_text().splitlines()
    assert text == ["step,train/loss,val/loss", "1,0.5,", "2,0.25,0.75", "3,0.125,"]


def test_a_resumed_run_goes_on_in_the_file_and_replaces_what_it_does_again(tmp_path):
    first = MetricsFile(tmp_path)
    for step in range(5):
        first.log_metrics({"train/loss": step}, step)
    second = MetricsFile(tmp_path)
    second.log_metrics({"train/loss": 30}, 3)
    second.log_metrics({"train/loss": 40, "val/loss": 1}, 4)
    assert [row["train/loss"] for row in read_metrics(tmp_path)] == [0, 1, 2, 30, 40]
    assert read_metrics(tmp_path)[-1] == {"step": 4, "train/loss": 40, "val/loss": 1}


def test_no_file_no_rows_and_nothing_is_made_before_the_first_metric(tmp_path):
    log = MetricsFile(tmp_path / "run")
    log.log_hyperparams({"lr": 1})
    assert read_metrics(tmp_path / "run") == []
    assert list(tmp_path.iterdir()) == []
    assert (log.name, log.version, log.save_dir) == ("", "", str(tmp_path / "run"))


def test_under_a_trainer_validation_before_training_is_step_0(train, policy, tmp_path):
    from lit_rlhf.callbacks.summary import RunSummary

    train(policy(), RunSummary(), logger=MetricsFile(tmp_path), num_sanity_val_steps=-1)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["val/loss"] > rows[-1]["val/loss"]
