"""TRL's side of ``benchmarks/reward.py``: one setting, measured in this process. Needs TRL 1.16, not this package."""

from __future__ import annotations

from typing import Any

from steps_trl import arguments, load, parts, run
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def sorted_by_length(plan: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with those of the measured steps sorted by their longer text, longest first."""
    tokenizer = AutoTokenizer.from_pretrained(plan["model"])

    def longest(row: dict[str, Any]) -> int:
        return max(len(tokenizer(row["prompt"] + row[key]).input_ids) for key in ("chosen", "rejected"))

    first = plan["warmup"] * plan["batch_size"]
    return rows[:first] + sorted(rows[first:], key=longest, reverse=True)


def make(plan: dict[str, Any], setting: dict[str, Any], rows: list[dict[str, Any]]) -> RewardTrainer:
    """The trainer; the adapter's task type lets the score head be trained, which TRL's default would freeze."""
    rows = sorted_by_length(plan, rows) if setting["is_sorted"] else rows
    model = load(plan, AutoModelForSequenceClassification, num_labels=1)
    return RewardTrainer(model, args=RewardConfig(**arguments(plan, setting)), **parts(plan, rows, "SEQ_CLS"))


if __name__ == "__main__":
    run(__doc__, make)
