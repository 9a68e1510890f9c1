"""TRL's side of ``moe.py``: train its DPOTrainer with a load-balancing loss, and write its losses.

Runs in an environment with TRL 1.16, without this package.
"""

from __future__ import annotations

from typing import Any

import torch
from dpo_trl import Unrounded
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig
from trl_run import read_rows, run_all, settings_of


def run(plan: dict[str, Any], settings: dict[str, Any]) -> tuple[list[float], Unrounded]:
    """Train with one coefficient."""
    base = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    trainer = Unrounded(
        PeftModel.from_pretrained(base, plan["adapter"], is_trainable=True),
        args=DPOConfig(beta=0.1, **settings, **settings_of(plan)),
        train_dataset=read_rows(plan["rows"]),
        processing_class=AutoTokenizer.from_pretrained(plan["model"]),
    )
    trainer.losses = []
    trainer.train()
    return trainer.losses, trainer


if __name__ == "__main__":
    run_all(__doc__, run, ["prompt_ids", "chosen_ids", "rejected_ids"])
