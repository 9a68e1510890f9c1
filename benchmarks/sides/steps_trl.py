"""What TRL's sides of the training benchmarks share. Needs TRL 1.16, not this package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import trl
from datasets import Dataset
from meter import Meter
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, Trainer, TrainerCallback

Plan = dict[str, Any]
Setting = dict[str, Any]


class Watch(TrainerCallback):
    """Feeds the meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The model is loaded."""
        self.meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        self.meter.step()


def load(plan: Plan, auto_class: type, **options: Any) -> PreTrainedModel:
    """The model in the dtype, and in the quantisation, of the plan."""
    dtype = getattr(torch, plan["dtype"])
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return auto_class.from_pretrained(
        plan["model"],
        dtype=dtype,
        quantization_config=four_bits if plan["quantization"] == "nf4" else None,
        device_map={"": plan["device"]},
        **options,
    )


def arguments(plan: Plan, setting: Setting) -> dict[str, Any]:
    """Arguments of every trainer: TRL's defaults, rows in order, nothing saved or reported."""
    return {
        "output_dir": plan["scratch"],
        "per_device_train_batch_size": plan["batch_size"],
        "max_steps": plan["steps"],
        "max_length": plan["max_length"],
        "gradient_checkpointing": setting["gradient_checkpointing"],
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": [],
        "bf16": plan["dtype"] == "bfloat16",
        "use_cpu": plan["device"] == "cpu",
        "disable_tqdm": True,
    }


def parts(plan: Plan, rows: list[dict[str, Any]], task_type: str) -> dict[str, Any]:
    """Rows, tokenizer and adapter, as every trainer takes them."""
    return {
        "train_dataset": Dataset.from_list(rows),
        "processing_class": AutoTokenizer.from_pretrained(plan["model"]),
        "peft_config": peft.LoraConfig(task_type=task_type, target_modules="all-linear", **plan["lora"]),
    }


def count_real_tokens(plan: Plan, trainer: Trainer) -> int:
    """Tokens of the measured steps, the prompt counted once per response, padding never."""
    first, last = (steps * plan["batch_size"] for steps in (plan["warmup"], plan["steps"]))
    rows = trainer.train_dataset.select(range(first, last))
    ends = [len(row.get("prompt_ids", [])) + len(row[key]) for row in rows for key in ("chosen_ids", "rejected_ids")]
    return sum(min(end, plan["max_length"]) for end in ends)


def run(
    doc: str,
    make: Callable[[Plan, Setting, list[dict[str, Any]]], Trainer],
    count: Callable[[Plan, Trainer], int] = count_real_tokens,
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Measure one setting of a plan, as the command line says; ``more`` is what else there is to say in the end."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("setting", type=json.loads)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    if plan["device"] == "cpu":
        torch.set_num_threads(1)
    rows = [json.loads(line) for line in Path(plan["rows"]).read_text().splitlines()]
    meter = Meter(plan["device"], plan["warmup"])
    trainer = make(plan, options.setting, rows)
    trainer.add_callback(Watch(meter))
    trainer.train()
    tokens = {"real": count(plan, trainer)}
    versions = {package.__name__: package.__version__ for package in (trl, transformers, peft, torch)}
    options.out.write_text(json.dumps({**meter.result(), "tokens": tokens, "versions": versions, **more()}))
