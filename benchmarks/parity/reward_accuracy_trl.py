"""TRL's side of ``reward_accuracy.py``: train its RewardTrainer, then evaluate it on held-out rows.

Runs in an environment with TRL 1.16, without this package.
"""

from __future__ import annotations

from typing import Any

import reward_trl
from trl import RewardTrainer
from trl_run import read_rows, run_all


def run(plan: dict[str, Any], settings: dict[str, Any]) -> tuple[dict[str, float], RewardTrainer]:
    """Train under one setting, then evaluate; all batches are full, so that a mean of means is a mean."""
    _, trainer = reward_trl.run(plan, settings)
    measured = trainer.evaluate(read_rows(plan["test_rows"]))
    return {name: measured[f"eval_{name}"] for name in ("accuracy", "margin", "loss")}, trainer


if __name__ == "__main__":
    run_all(__doc__, run, ["chosen_ids", "rejected_ids"])
