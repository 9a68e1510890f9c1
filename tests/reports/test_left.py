"""Reading the folder of a run, whole or not."""

from __future__ import annotations

import pytest

from lit_rlhf.reports.left import flat, read_run


def test_a_whole_folder(finished):
    run = read_run(finished("ppo"))
    assert (run.name, run.algorithm, run.problems) == ("ppo", "PPO", [])
    assert run.facts["seconds"] == 75
    assert run.settings["model.kl.coef"] == 0.05
    assert len(run.metrics) == 4
    assert run.ends("val/score") == (0.0, 3.0)
    assert run.ends("nothing") is None


def test_the_first_and_the_last_moment(finished):
    run = read_run(finished())
    assert {row["step"] for row in run.first_samples} == {0}
    assert {row["step"] for row in run.last_samples} == {3}
    assert run.first_rows == run.first_samples, "where no rows were kept, responses are what was scored"
    run.held_out = [{"step": 1, "chosen": 2.0}]
    assert run.first_rows == run.last_rows == run.held_out


def test_what_is_missing_is_told(finished):
    run = read_run(finished(facts=None, config=None, rows=[{"step": 0.0, "train/loss": 1.0}]))
    assert run.problems == ["run.json: there is none", "config.yaml: there is none"]
    assert run.algorithm == "run"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("run.json", '{"state": ', "run.json cannot be read"),
        ("run.json", "[]", "run.json holds no table"),
        ("run.json", "[" * 100_000, "run.json cannot be read"),
        ("config.yaml", "a: [1", "config.yaml cannot be read"),
        ("config.yaml", "!!python/object/apply:os.system [ls]", "config.yaml cannot be read"),
        ("samples.jsonl", '{"step": 1}\n{"ste\n7\n', "samples.jsonl: 2 lines cannot be read, and are left out"),
        ("metrics.csv", "", "metrics.csv: there is none, or it has no row: there are no curves"),
    ],
)
def test_what_is_damaged_is_told(name, text, told, finished):
    folder = finished()
    (folder / name).write_text(text)
    (problem,) = read_run(folder).problems
    assert problem.startswith(told)


def test_where_no_run_has_been(tmp_path):
    with pytest.raises(ValueError, match="no run has been there"):
        read_run(tmp_path)


def test_settings_by_their_keys():
    tree = {"model": {"class_path": "DPO", "init_args": {"beta": 1, "losses": [{"weight": 1}]}}, "seed": None}
    assert flat(tree) == {"model": "DPO", "model.beta": 1, "model.losses": [{"weight": 1}], "seed": None}
