"""TRL's side of ``dpo.py``: train its DPOTrainer from a given adapter on given rows, in order, and write its losses.

Runs in an environment with TRL 1.16, without this package.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl_run import read_rows, run_all, settings_of


class Unrounded(DPOTrainer):
    """Keeps the loss of each step as it was computed; the log holds a rounded one."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the loss and its gradients."""
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def train(plan: dict[str, Any], **options: Any) -> tuple[list[float], DPOTrainer]:
    """Train with further options of DPOConfig, the reference live."""
    base = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    trainer = Unrounded(
        PeftModel.from_pretrained(base, plan["adapter"], is_trainable=True),
        args=DPOConfig(**options, **settings_of(plan)),
        train_dataset=read_rows(plan["rows"]),
        processing_class=AutoTokenizer.from_pretrained(plan["model"]),
    )
    trainer.losses = []
    trainer.train()
    return trainer.losses, trainer


def run(plan: dict[str, Any], settings: dict[str, Any]) -> tuple[list[float], DPOTrainer]:
    """Train with one loss."""
    return train(plan, loss_type=settings["losses"], loss_weights=settings["weights"], beta=settings["beta"])


if __name__ == "__main__":
    run_all(__doc__, run, ["prompt_ids", "chosen_ids", "rejected_ids"])
