"""TRL's side of ``moe.py``: train its DPOTrainer with a load-balancing loss, and write its losses.

Runs in an environment with TRL 1.16, without this package.
"""

from __future__ import annotations

from typing import Any

from dpo_trl import train
from trl import DPOTrainer
from trl_run import run_all


def run(plan: dict[str, Any], settings: dict[str, Any]) -> tuple[list[float], DPOTrainer]:
    """Train with one coefficient."""
    return train(plan, beta=0.1, **settings)


if __name__ == "__main__":
    run_all(__doc__, run, ["prompt_ids", "chosen_ids", "rejected_ids"])
