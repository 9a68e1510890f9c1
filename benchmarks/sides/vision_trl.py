"""TRL's side of ``benchmarks/vision.py``: one setting, measured in this process.

Needs TRL 1.16, neither this package nor torchvision.
"""

from __future__ import annotations

import base64
from typing import Any

import peft
import trl
from datasets import Dataset, Image, List
from steps_trl import arguments, load, run
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from vision_tower import TowerCount

DECODER = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
TOWER = TowerCount()


class Counted(DataCollatorForVisionPreference):
    """Counts the tokens of every batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of TRL's."""
        batch = super().torch_call(examples)
        self.counts.append(int(batch["attention_mask"].sum()))
        return batch


def make(plan: dict[str, Any], setting: dict[str, Any], rows: list[dict[str, Any]]) -> DPOTrainer:
    """The trainer. On a CPU its head would score every position; it is let score responses alone, as on a GPU."""
    if plan["device"] == "cpu":
        trl.trainer.utils._use_triton = lambda device: True
    plan = {**plan, "model": plan["models"][setting["tower"]]}
    for row in rows:
        row["images"] = [{"path": None, "bytes": base64.b64decode(image["bytes"])} for image in row["images"]]
    processor = AutoProcessor.from_pretrained(plan["model"])
    collator = Counted(processor, max_length=plan["max_length"])
    collator.counts = []
    trainer = DPOTrainer(
        load(plan, AutoModelForImageTextToText),
        args=DPOConfig(**arguments(plan, setting)),
        train_dataset=Dataset.from_list(rows).cast_column("images", List(Image())),
        processing_class=processor,
        data_collator=collator,
        peft_config=peft.LoraConfig(target_modules=DECODER, **plan["lora"]),
    )
    TOWER.watch(trainer.model)
    return trainer


def count(plan: dict[str, Any], trainer: DPOTrainer) -> int:
    """Tokens of the measured steps, the prompt counted once per response, padding never."""
    return sum(trainer.data_collator.counts[plan["warmup"] :])


if __name__ == "__main__":
    run(__doc__, make, count, TOWER.said)
