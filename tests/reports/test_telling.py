"""What a report tells in words and tables."""

from __future__ import annotations

import pytest

from lit_rlhf.reports import telling
from lit_rlhf.reports.left import Run, read_run
from tests.reports.conftest import CONFIG, FACTS, metrics


def test_nothing_is_told_of_nothing(tmp_path):
    run = Run(tmp_path)
    told = [telling.key_numbers, telling.warnings, telling.data, telling.reproduction, telling.settings]
    assert [tell(run) for tell in told] == [None] * 5


@pytest.mark.parametrize(
    ("state", "begin"),
    [
        ("finished", "Finished after iteration 3 in 1:15: held-out score went from 0 to 3."),
        ("running", "It has not ended, or was killed after iteration 3"),
        ("KeyboardInterrupt", "Ended early (KeyboardInterrupt) after iteration 3"),
    ],
)
def test_the_outcome_in_a_sentence(state, begin, finished):
    assert telling.outcome(read_run(finished(facts={**FACTS, "state": state}))).startswith(begin)


def test_the_outcome_of_a_run_that_says_nothing(finished):
    run = read_run(finished(facts=None, rows=[{"step": 0.0, "val/loss": 1.0}]))
    assert telling.outcome(run) == "How it ended is not known."


def test_key_numbers_are_those_that_moved(finished):
    rows = metrics()
    for row in rows:
        row["val/level"] = 1.0
    shown = telling.key_numbers(read_run(finished(rows=rows)))
    assert [part.partition("<")[0] for part in shown.split('class="what">')[1:]] == ["score", "kl", "length"]
    assert "<b>3</b>" in shown
    assert "score_std" in shown
    assert "level" not in shown


def test_warnings_are_told_and_so_is_that_there_were_none(finished):
    run = read_run(finished())
    assert "KL is running away" in telling.warnings(run)
    run.facts["warnings"] = []
    assert "No health band was left" in telling.warnings(run)
    run.facts["warnings"] = None
    assert telling.warnings(run) is None, "nobody watched"


def test_rows_that_were_left_out_and_why(finished):
    run = read_run(finished())
    shown = telling.data(run)
    assert '<td>too_long</td><td class="number">25.00%</td>' in shown
    assert '<td>truncated</td><td>all</td><td class="number">0.00%</td>' in shown
    run.metrics[0]["train/data/dropped/too_long"] = 0.25
    for row in run.metrics[1:]:  # a reason is logged where it occurs
        del row["train/data/dropped/too_long"]
    assert '<td>too_long</td><td class="number">6.25%</td>' in telling.data(run)
    run.metrics = [{"step": 0.0, "train/data/dropped": 0.0}]
    assert "No row was left out or shortened" in telling.data(run)


def test_how_to_have_it_again(finished):
    folder = finished()
    shown = telling.reproduction(read_run(folder))
    assert "python -m lit_rlhf fit --config ppo.yaml</pre>" in shown
    assert f"--config {folder / 'config.yaml'}" in shown
    assert '<th scope="row">seed</th><td>7</td>' in shown
    assert '<th scope="row">torch</th><td>2.11</td>' in shown


@pytest.mark.parametrize("key", ["token", "api_key", "password", "hub_token", "client_secret"])
def test_secrets_are_nobodys_business(key, finished):
    config = {**CONFIG, "data": {"init_args": {key: "hunter2", "max_tokens": "9", "tokenizer": "gpt2"}}}
    run = read_run(finished(config=config))
    assert telling.shown(run)[f"data.{key}"] == "(hidden)"
    assert telling.shown(run)["data.tokenizer"] == "gpt2"
    assert "hunter2" not in telling.settings(run)
    assert "model.kl.target" not in telling.settings(run), "it is empty"


def test_files_are_listed_and_linked(finished):
    folder = finished()
    (folder / "plots").mkdir()
    (folder / "plots" / "all.png").write_bytes(b"x" * 2000)
    (folder / 'a "b".txt').write_text("")
    shown = telling.files(read_run(folder))
    assert '<a href="./plots">plots/</a></th><td class="number">2 kB</td>' in shown
    assert '<a href="./a%20%22b%22.txt">' in shown
    assert "every setting" in shown
