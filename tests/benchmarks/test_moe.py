"""The benchmark of a mixture of experts: its pairs, its gates, its table, and one run of each kind on a tiny one."""

import argparse
import json

import pytest

from tests.tiny_moe import make_mixture

STORIES = [
    {"prompt": "Tom had a dog.", "completion": " " + " ".join([*["happy"] * 2, *["word"] * 46, "left", "over"])},
    {"prompt": "Ann ran.", "completion": " " + " ".join(["fun", *["other"] * 23])},
    {"prompt": "It rained.", "completion": " too short to be a passage"},
] * 4


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("moe.py")


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("moe")
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in STORIES))
    model = make_mixture("mixtral", vocab_size=len(tiny_tokenizer), eos_token_id=tiny_tokenizer.eos_token_id)
    model.save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    return argparse.Namespace(model=str(folder / "model"), stories=folder, out=folder / "results", load="")


def test_passages_have_equally_many_words_and_the_opening_of_their_story(script, options):
    found = list(script.passages(options.stories / "train.jsonl"))
    assert {len(text.split()) for _, text in found} == {script.PASSAGE_WORDS}
    assert len(found) == 4 * (2 + 1)
    assert found[0] == ("Tom had a dog.", " happy happy" + " word" * 22)
    assert found[2] == ("Ann ran.", " fun" + " other" * 23)


def test_the_passage_with_more_positive_words_is_chosen(script, options):
    rows = script.pairs_of(options.stories / "train.jsonl")
    assert 1 < len(rows) < 6  # six pairs, without those that are even
    assert all(script.positive(row["chosen"]) > script.positive(row["rejected"]) for row in rows)
    assert {row["prompt"] for row in rows} <= {"Tom had a dog.", "Ann ran."}
    assert rows == script.pairs_of(options.stories / "test.jsonl")


def test_gates_are_passed_from_their_own_side(script):
    low, high = script.RUNS["sft"], script.RUNS["ppo"]
    assert [low.passes(-low.gate + off) for off in (-0.01, 0.01)] == [True, False]
    assert [high.passes(high.gate + off) for off in (-0.01, 0.01)] == [False, True]


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_a_run_says_what_it_reached(script, options, monkeypatch, name):
    monkeypatch.setitem(script.RUNS, name, script.RUNS[name]._replace(steps=4 if name == "ppo" else 1, gate=10.0**6))
    found = script.measured(name, options)
    assert found["gate"] == "missed"
    assert found["before"] != found["after"] or name in ("reward", "dpo", "ppo")  # shares of a few rows
    assert 1.0 < found["aux_loss"] < 4.0
    assert (found["mismatch"] is None) == (name != "ppo")


def test_the_table_has_a_row_for_each_run(script, options):
    runs = [{"run": "sft", "steps": 40, "before": 1.5, "mismatch": None, "cpu_s": 33.4}]
    page = script.write(options, runs).read_text()
    assert "| sft | 40 | 1.500 |  | 33 |" in page
    assert "'transformers': " in page
    kept = json.loads((options.out / "moe.json").read_text())
    assert kept["runs"] == runs
    assert kept["rows"] == {"train": len(script.pairs_of(options.stories / "train.jsonl"))} | {
        "test": len(script.pairs_of(options.stories / "test.jsonl"))
    }
