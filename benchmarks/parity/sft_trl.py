"""TRL's side of ``sft.py``: train its SFTTrainer from a given adapter on given rows, in order, and write its losses.

Runs in an environment with TRL 1.16, without this package.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl_run import read_rows, run_all, settings_of


class Unrounded(SFTTrainer):
    """Keeps the loss of each step as it was computed; the log holds a rounded one."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the loss and its gradients."""
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def run(plan: dict[str, Any], settings: dict[str, Any]) -> tuple[list[float], SFTTrainer]:
    """Train under one setting. The shares of accumulated batches, each over the tokens of the step, sum to its loss."""
    base = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    parts = settings["accumulated"]
    numbers = {**settings_of(plan), "per_device_train_batch_size": plan["batch_size"] // parts}
    trainer = Unrounded(
        PeftModel.from_pretrained(base, plan["adapter"], is_trainable=True),
        args=SFTConfig(
            gradient_accumulation_steps=parts, label_smoothing_factor=settings["label_smoothing"], **numbers
        ),
        train_dataset=read_rows(plan["rows"]),
        processing_class=AutoTokenizer.from_pretrained(plan["model"]),
    )
    trainer.losses = []
    trainer.train()
    shares = torch.tensor(trainer.losses, dtype=torch.float64).view(-1, parts)
    return shares.sum(1).tolist(), trainer


if __name__ == "__main__":
    run_all(__doc__, run, ["input_ids", "labels"])
