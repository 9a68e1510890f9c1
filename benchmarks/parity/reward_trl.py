"""TRL's side of ``reward.py``: train its RewardTrainer from a given start on given rows, in order.

Runs in an environment with TRL 1.16, without this package.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer
from trl_run import read_rows, run_all, settings_of


class Unrounded(RewardTrainer):
    """Keeps what each step came to as it was computed; the log holds rounded numbers."""

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], **options: Any) -> Any:
        """Compute the loss, with the model's outputs if they are asked for."""
        loss, outputs = super().compute_loss(model, inputs, **{**options, "return_outputs": True})
        chosen, rejected = outputs.logits.detach().squeeze(-1).chunk(2)
        accuracy = (chosen > rejected).float().mean()
        for name, value in {"loss": loss, "margin": (chosen - rejected).mean(), "accuracy": accuracy}.items():
            self.course.setdefault(name, []).append(value.item())
        return (loss, outputs) if options.get("return_outputs") else loss


def load(plan: dict[str, Any], tuning: str) -> torch.nn.Module:
    """The model with its start: an adapter with its head, or all weights with theirs."""
    if tuning == "full":
        return AutoModelForSequenceClassification.from_pretrained(plan["full"], dtype=torch.float32)
    base = AutoModelForSequenceClassification.from_pretrained(plan["model"], num_labels=1, dtype=torch.float32)
    return PeftModel.from_pretrained(base, plan["adapter"], is_trainable=True)


def run(plan: dict[str, Any], settings: dict[str, Any]) -> tuple[dict[str, list[float]], RewardTrainer]:
    """Train under one setting."""
    trainer = Unrounded(
        load(plan, settings["tuning"]),
        args=RewardConfig(center_rewards_coefficient=settings["centring"] or None, **settings_of({**plan, **settings})),
        train_dataset=read_rows(plan["rows_with_margins" if settings["margins"] else "rows"]),
        processing_class=AutoTokenizer.from_pretrained(plan["model"]),
    )
    trainer.course = {}
    trainer.train()
    return trainer.course, trainer


if __name__ == "__main__":
    run_all(__doc__, run, ["chosen_ids", "rejected_ids"])
