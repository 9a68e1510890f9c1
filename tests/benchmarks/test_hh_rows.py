"""Rows of HH files."""

import gzip
import json

import pytest


def dialogue(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[number % 2]}: {turn}" for number, turn in enumerate(turns))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_rows_are_split_before_the_last_answer(load_script, tmp_path, suffix):
    rows = [
        {"chosen": dialogue("a", "b", "c", "good"), "rejected": dialogue("a", "b", "c", "bad")},
        {"chosen": dialogue("a", "good"), "rejected": dialogue("other", "bad")},
        {"chosen": dialogue("a", ""), "rejected": dialogue("a", "bad")},
        {"chosen": dialogue("a", "good"), "rejected": dialogue("a", "")},
        {"chosen": dialogue("a", "same"), "rejected": dialogue("a", "same")},
    ]
    file = tmp_path / f"rows{suffix}"
    with gzip.open(file, "wt") if suffix == ".jsonl.gz" else file.open("w") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    read = list(load_script("hh_rows.py").read_rows(file))
    assert read == [{"prompt": prompt, "chosen": " good", "rejected": " bad"}]
