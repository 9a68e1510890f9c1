"""What TRL's sides of the comparisons share. Runs in an environment with TRL 1.16, without this package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from transformers import Trainer


def settings_of(plan: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every run: rows in order. Gradient checkpointing, TRL's default, changes no number and is off."""
    return {
        "output_dir": plan["scratch"],
        "per_device_train_batch_size": plan["batch_size"],
        "max_steps": plan["steps"],
        "learning_rate": plan["lr"],
        "max_grad_norm": plan["max_grad_norm"],
        "max_length": plan["max_length"],
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }


def read_rows(file: str) -> Dataset:
    """Rows of a .jsonl file."""
    return Dataset.from_list([json.loads(line) for line in Path(file).read_text().splitlines()])


def run_all(doc: str, run: Callable[[dict[str, Any], dict[str, Any]], tuple[Any, Trainer]], columns: list[str]) -> None:
    """Run every setting of a plan and write what each came to, and the tokens of the rows, beside the plan."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("plan", type=Path)
    path = parser.parse_args().plan
    plan = json.loads(path.read_text())
    results: dict[str, Any] = {"version": trl.__version__}
    for name, settings in plan["settings"].items():
        results[name], trainer = run(plan, settings)
    results["tokens"] = [{column: row[column] for column in columns} for row in trainer.train_dataset]
    path.with_name("trl.json").write_text(json.dumps(results))
