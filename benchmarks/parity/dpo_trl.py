"""TRL's side of ``dpo.py``: train its DPOTrainer from a given adapter on given rows, in order, and write its losses.

Runs in an environment with TRL 1.16, without this package.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


class Unrounded(DPOTrainer):
    """Keeps the loss of each step as it was computed; the log holds a rounded one."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the loss and its gradients."""
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def run(plan: dict[str, Any], settings: dict[str, Any]) -> DPOTrainer:
    """Train with one loss, gradient checkpointing on and the reference live, as TRL does unless told otherwise."""
    base = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, plan["adapter"], is_trainable=True)
    config = DPOConfig(
        output_dir=plan["scratch"],
        loss_type=settings["losses"],
        loss_weights=settings["weights"],
        beta=settings["beta"],
        per_device_train_batch_size=plan["batch_size"],
        max_steps=plan["steps"],
        learning_rate=plan["lr"],
        max_grad_norm=plan["max_grad_norm"],
        lr_scheduler_type="constant",
        max_length=plan["max_length"],
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [json.loads(line) for line in Path(plan["rows"]).read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(plan["model"])
    trainer = Unrounded(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.losses = []
    trainer.train()
    return trainer


def main() -> None:
    """Run every setting of a plan and write the results beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    path = parser.parse_args().plan
    plan = json.loads(path.read_text())
    results: dict[str, Any] = {"version": trl.__version__}
    for name, settings in plan["settings"].items():
        trainer = run(plan, settings)
        results[name] = trainer.losses
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    results["tokens"] = [{column: row[column] for column in columns} for row in trainer.train_dataset]
    path.with_name("trl.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
