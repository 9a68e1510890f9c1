"""TRL's side of ``vision_dpo.py``: train its DPOTrainer from a given adapter on given rows, in order.

Runs in an environment with TRL 1.16, without this package and without torchvision.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image, List
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl_run import run_all, settings_of

LOGGED = {"chosen": "logps/chosen", "rejected": "logps/rejected"}


class Unrounded(DPOTrainer):
    """Keeps what each step came to as it was computed; the log holds a rounded loss."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the loss and its gradients."""
        loss = super().training_step(*args, **kwargs)
        self.course["loss"].append(loss.item())
        for name, logged in LOGGED.items():
            self.course[name].append(self._metrics["train"][logged][-1])
        return loss


class Tokens(DataCollatorForVisionPreference):
    """Keeps the tokens of every row, which TRL makes as it goes along."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch: the chosen responses first, then the rejected ones."""
        batch = super().torch_call(examples)
        columns = [batch[name].bool() for name in ("attention_mask", "completion_mask")]
        rows = [
            (ids[real & ~said].tolist(), ids[said].tolist())
            for ids, real, said in zip(batch["input_ids"], *columns, strict=True)
        ]
        for (prompt, chosen), (_, rejected) in zip(rows[: len(examples)], rows[len(examples) :], strict=True):
            self.tokens.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        return batch


def read_rows(file: str) -> Dataset:
    """Rows of a .jsonl file with their pictures."""
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    for row in rows:
        row["images"] = [{"path": None, "bytes": base64.b64decode(image["bytes"])} for image in row["images"]]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


def run(plan: dict[str, Any], settings: dict[str, Any]) -> tuple[dict[str, list[float]], Trainer]:
    """Train with one adapter, the reference live."""
    base = AutoModelForImageTextToText.from_pretrained(plan["model"], dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(plan["model"])
    collator = Tokens(processor, max_length=plan["max_length"])
    collator.tokens = []
    trainer = Unrounded(
        PeftModel.from_pretrained(base, plan["adapters"][settings["adapter"]], is_trainable=True),
        args=DPOConfig(**settings_of(plan)),
        train_dataset=read_rows(plan["rows"]),
        processing_class=processor,
        data_collator=collator,
    )
    trainer.course = {name: [] for name in ("loss", *LOGGED)}
    trainer.train()
    trainer.train_dataset = Dataset.from_list(collator.tokens)
    return trainer.course, trainer


if __name__ == "__main__":
    run_all(__doc__, run, ["prompt_ids", "chosen_ids", "rejected_ids"])
