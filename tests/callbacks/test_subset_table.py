"""The table of a test by subset: rows by hand, RewardBench's sections, the file and the print."""

from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lit_rlhf.callbacks.subset_table import FILE, REWARD_BENCH, SubsetRow, SubsetTable, reward_bench_sections, table_of

# Name: pairs, accuracy (None where all are tied), ties, margin.
TWO = {"": (40, 0.8, 0.25, 1.5), "/a": (30, 0.9, 0.0, 2.0), "/b/c": (10, None, 1.0, 0.0)}


def metrics(table):
    found = {}
    for part, (pairs, accuracy, ties, margin) in table.items():
        named = {"scores/ties": ties, "scores/margin": margin, "scores/accuracy": accuracy}
        named |= {"pairs": pairs} if part else {}
        found.update({f"test/{name}{part}": torch.tensor(float(x)) for name, x in named.items() if x is not None})
    return found


def close(rows, expected):
    assert [row.subset for row in rows] == [row[0] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row[1:] == pytest.approx(wanted[1:])


def test_subsets_and_both_means():
    subsets, means = table_of({**metrics(TWO), "test/loss": torch.tensor(1.0)})
    close(subsets, [("a", 30, 0.9, 0.0, 2.0), ("b/c", 10, None, 1.0, 0.0)])
    close(means, [("mean over pairs", 40, 0.8, 0.25, 1.5), ("mean over subsets", 40, 0.9, 0.5, 1.0)])


def test_nothing_without_subsets():
    assert table_of(metrics({"": TWO[""]})) == []


def test_no_mean_of_no_accuracy():
    _, means = table_of(metrics(dict.fromkeys(("", "/a", "/b"), (10, None, 1.0, 0.0))))
    close(means, [("mean over pairs", 20, None, 1.0, 0.0), ("mean over subsets", 20, None, 1.0, 0.0)])


def bench(accuracy, ties=0.0):
    names = [name for weights in REWARD_BENCH.values() for name in weights]
    return [SubsetRow(name, 10, accuracy(name), ties, 0.0) for name in names]


def test_reward_bench_has_23_subsets():
    assert len(bench(lambda name: 1.0)) == 23
    reasoning = REWARD_BENCH["Reasoning"]
    assert reasoning["math-prm"] == sum(weight for name, weight in reasoning.items() if name.startswith("hep-"))


def test_sections_of_reward_bench():
    """By hand: only the easy and refusal subsets and all code are won."""
    won = {"alpacaeval-easy", "mt-bench-hard", "refusals-dangerous", "refusals-offensive"}
    rows = reward_bench_sections(bench(lambda name: float(name in won or name.startswith("hep-"))))
    scores = [100 / 358, 37 / 456, 200 / 740, 0.5]
    names = ["Chat", "Chat Hard", "Safety", "Reasoning"]
    expected = [
        (name, pairs, score, 0.0, None) for name, pairs, score in zip(names, (50, 60, 50, 70), scores, strict=True)
    ]
    close(rows, [*expected, ("mean over sections", 230, sum(scores) / 4, 0.0, None)])


def test_ties_are_lost_in_sections():
    rows = reward_bench_sections(bench(lambda name: None if name == "math-prm" else 0.8, ties=0.25))
    assert [row.accuracy for row in rows] == pytest.approx([0.6, 0.6, 0.6, 0.3, 0.525])
    assert [row.ties for row in rows] == pytest.approx([0.25] * 5)


def test_a_section_needs_all_of_its_subsets_and_no_stranger():
    rows = bench(lambda name: 1.0)
    without = [row for row in rows if row.subset != "hep-go"]
    assert [row.subset for row in reward_bench_sections(without)] == ["Chat", "Chat Hard", "Safety"]
    assert reward_bench_sections([*rows, rows[0]._replace(subset="mine")]) == []


class Judge(LightningModule):
    def test_step(self, batch, batch_idx):
        self.log_dict(metrics(TWO), batch_size=1)


def run(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[SubsetTable()], **quiet, **options)
    trainer.test(Judge(), DataLoader(torch.zeros(1)), verbose=False)


def test_written_and_printed(tmp_path, capsys):
    run(tmp_path / "new")
    with (tmp_path / "new" / FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["subset"] for row in rows] == ["a", "b/c", "mean over pairs", "mean over subsets"]
    assert (rows[1]["pairs"], rows[1]["accuracy"], rows[1]["ties"]) == ("10", "", "1")
    assert float(rows[2]["accuracy"]) == pytest.approx(0.8)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "30", "0.900", "0.000", "2.000"] in lines
    assert ["b/c", "10", "-", "1.000", "0.000"] in lines


def test_a_trial_run_writes_nothing(tmp_path, capsys):
    run(tmp_path, fast_dev_run=True)
    assert not (tmp_path / FILE).exists()
    assert "mean over pairs" not in capsys.readouterr().out


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    run(tmp_path)
    assert not (tmp_path / FILE).exists()
