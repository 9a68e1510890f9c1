"""What the comparisons of training runs with TRL share: rows, the course of a comparison, its verdict."""

import json
import sys
from argparse import Namespace

import pytest
import torch

from lit_rlhf.types import Forest, PreferenceBatch, PreferencePairs, Segment

THEIRS = {"version": "1.16", "one": {"loss": [0.5]}, "other": {"loss": [0.25]}, "tokens": []}


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("parity/beside_trl.py")


def test_rows_that_fit(script, tiny_llama, tmp_path):
    def row(length):
        answers = {"chosen": "x" * length, "rejected": "y"}
        return {side: f"\n\nHuman: a\n\nAssistant: {text}" for side, text in answers.items()}

    file = tmp_path / "hh.jsonl"
    file.write_text("".join(json.dumps(row(length)) + "\n" for length in (1, 500, 2, 3)))
    rows = script.rows_that_fit(file, tiny_llama(), 100)
    assert [row["chosen"] for row in rows] == [" x", " xx", " xxx"]
    assert script.rows_that_fit(file, tiny_llama(), 100, 2) == rows[:2]
    with pytest.raises(ValueError, match="holds 3 rows under 100 tokens, 4 are needed"):
        script.rows_that_fit(file, tiny_llama(), 100, 4)


def test_tokens_by_row(script):
    tree = [Segment([5, 6], [False] * 2), Segment([7], [True], 0), Segment([8, 9], [True] * 2, 0)]
    pair = [torch.tensor([1, 3]), torch.tensor([0, 2]), torch.zeros(2), ("a:4", "a:2"), ("a", "a")]
    batch = PreferenceBatch((PreferencePairs(Forest.pack([tree, tree]), *pair),), {})
    tokens = {"prompt_ids": [5, 6], "chosen_ids": [8, 9], "rejected_ids": [7]}
    assert script.tokens_of(batch) == {4: tokens, 2: tokens}


@pytest.fixture
def compared(script, tmp_path):
    """Compare with a TRL that answers at once; what our side was told."""
    theirs = tmp_path / "theirs.py"
    theirs.write_text(
        "import sys, pathlib\n"
        f"pathlib.Path(sys.argv[1]).with_name('trl.json').write_text({json.dumps(THEIRS)!r})\n"
        "assert 'steps' in pathlib.Path(sys.argv[1]).read_text()"
    )

    def compare(worst):
        told = []
        plan = {"steps": 3, "numbers": {"steps": 3}, "settings": {"one": {}, "other": {}}}
        options = Namespace(trl_python=sys.executable, out=tmp_path / "out", golden=tmp_path / "golden.json")
        script.run_both(theirs, options, lambda out: plan, lambda *both: told.append(both) or worst)
        assert told == [(plan, THEIRS)]

    return compare


def test_equal_runs_are_recorded(compared, tmp_path):
    compared({"one": 0.9e-4, "other": 0.0})
    golden = json.loads((tmp_path / "golden.json").read_text())
    assert golden == {
        "trl": "1.16",
        "numbers": {"steps": 3},
        "runs": {"one": {"loss": [0.5]}, "other": {"loss": [0.25]}},
    }
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == {"one": 0.9e-4, "other": 0.0}


@pytest.mark.parametrize("wrong", [1.1e-4, float("nan")])
def test_unequal_runs_are_an_error(compared, wrong):
    with pytest.raises(SystemExit, match="more than 1e-04 apart: other"):
        compared({"one": 0.0, "other": wrong})
