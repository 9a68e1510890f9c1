"""TRL's side of ``benchmarks/dpo.py``: one setting, measured in this process. Needs TRL 1.16, not this package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import trl
from datasets import Dataset
from meter import Meter
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import DPOConfig, DPOTrainer


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


def score_responses_only() -> None:
    """Let the head score response positions alone, as it does on a GPU; on a CPU it scores every position."""
    trl.trainer.utils._use_triton = lambda device: True


def load(plan: dict[str, Any]) -> torch.nn.Module:
    """The model in the dtype, and in the quantisation, of the plan."""
    dtype = getattr(torch, plan["dtype"])
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(
        plan["model"],
        dtype=dtype,
        quantization_config=four_bits if plan["quantization"] == "nf4" else None,
        device_map={"": plan["device"]},
    )


def count_real_tokens(plan: dict[str, Any], trainer: DPOTrainer) -> int:
    """Tokens of the measured steps, the prompt counted once per response, padding never."""
    first, last = (steps * plan["batch_size"] for steps in (plan["warmup"], plan["steps"]))
    rows = trainer.train_dataset.select(range(first, last))
    ends = [len(row["prompt_ids"]) + len(row[key]) for row in rows for key in ("chosen_ids", "rejected_ids")]
    return sum(min(end, plan["max_length"]) for end in ends)


def train(plan: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """Train the steps of the plan."""
    meter = Meter(plan["device"], plan["warmup"])
    config = DPOConfig(
        output_dir=plan["scratch"],
        per_device_train_batch_size=plan["batch_size"],
        max_steps=plan["steps"],
        max_length=plan["max_length"],
        gradient_checkpointing=setting["gradient_checkpointing"],
        precompute_ref_log_probs=setting["cached_reference"],
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        bf16=plan["dtype"] == "bfloat16",
        use_cpu=plan["device"] == "cpu",
        disable_tqdm=True,
    )
    rows = [json.loads(line) for line in Path(plan["rows"]).read_text().splitlines()]
    trainer = DPOTrainer(
        load(plan),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(plan["model"]),
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **plan["lora"]),
        callbacks=[Watch(meter)],
    )
    trainer.train()
    versions = {package.__name__: package.__version__ for package in (trl, transformers, peft, torch)}
    return {**meter.result(), "tokens": {"real": count_real_tokens(plan, trainer)}, "versions": versions}


def main() -> None:
    """Measure one setting of a plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("setting", type=json.loads)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    if plan["device"] == "cpu":
        torch.set_num_threads(1)
        score_responses_only()
    options.out.write_text(json.dumps(train(plan, options.setting)))


if __name__ == "__main__":
    main()
