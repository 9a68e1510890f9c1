"""The comparison of held-out accuracies: its split and its table. Measuring needs TRL."""

import pytest


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("parity/reward_accuracy.py")


def test_a_seed_draws_full_batches_that_share_no_row(script):
    rows = [{"prompt": str(number)} for number in range(103)]
    train, test = script.split(rows, 0, 8)
    assert (len(train), len(test)) == (80, 16)
    drawn = [int(row["prompt"]) for row in train + test]
    assert len(set(drawn)) == 96
    assert (train, test) == script.split(rows, 0, 8)
    assert (train, test) != script.split(rows, 1, 8)


def test_table_by_seed_with_means(script):
    def seed(number, ours, theirs):
        runs = {tuning: {"lit_rlhf": {"accuracy": ours}, "TRL": {"accuracy": theirs}} for tuning in script.SETTINGS}
        return {"seed": number, "runs": runs, "bag of words": 0.6, "shorter wins": 0.5}

    table = script.table([seed(0, 0.625, 0.5), seed(7, 0.75, 0.5)]).splitlines()
    assert table[:3] == [
        "| held-out accuracy | seed 0 | seed 7 | mean |",
        "| --- | --- | --- | --- |",
        "| lit_rlhf, lora | 0.625 | 0.750 | 0.688 |",
    ]
    assert table[-2:] == ["| bag of words | 0.600 | 0.600 | 0.600 |", "| shorter wins | 0.500 | 0.500 | 0.500 |"]
