"""PPO beside TRL 1.12, the last that had it: response tokens per second, seconds of each phase, and peak memory.

    python benchmarks/ppo.py --trl-python /path/to/trl-1.12/bin/python --data hh.jsonl.gz --out benchmarks/results
    python benchmarks/ppo.py ... --device cuda --arch reference --dtype bfloat16 --quantization nf4

Fresh process for every measurement, sides alternated, medians. An iteration draws one response to each prompt, scores
it, and trains policy and critic on it; its response tokens are what throughput counts. Policy and critic have LoRA
adapters. The model has random weights, but ends its responses at a mean length (``ending_model.py``). Both sides draw
by the same noise, and the learning rate leaves the policies as they are, so both sides draw the same responses: the
table says how long they were.

A pass is one minibatch, TRL's default, on both sides. TRL holds policy, critic and reward model each as a model of its
own; its reference is the policy with the adapter off. Its careful user turns gradient checkpointing on, which the
trainer's own switch does not.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from ending_model import let_responses_end
from side_by_side import Comparison, Run, compare, parse, ratio, write_plan

from lit_rlhf import BackboneConfig, LoraOptions
from lit_rlhf.models.heads.reward_model import build_reward_model

NUMBERS: dict[str, Any] = {"num_ppo_epochs": 2, "num_minibatches": 1, "max_new_tokens": 64, "lr": 1e-12}
MEAN_LENGTH = 24.0


def trl(gradient_checkpointing: bool, rollout_rows: int = 64) -> dict[str, Any]:
    """A setting of TRL's side."""
    return {"side": "trl", "gradient_checkpointing": gradient_checkpointing, "rollout_rows": rollout_rows}


def ours(critic: str, token_budget: int = 4096) -> dict[str, Any]:
    """A setting of our side."""
    return {"side": "lit_rlhf", "critic": critic, "token_budget": token_budget}


DEFAULT, CAREFUL = "TRL default", "TRL careful (checkpointing)"
SETTINGS = {
    DEFAULT: trl(gradient_checkpointing=False),
    CAREFUL: trl(gradient_checkpointing=True),
    "critic shares the policy's adapter": ours("shared"),
    "critic is an adapter of its own": ours("adapter"),
    "critic has a backbone of its own": ours("model"),
}


def summarise(comparison: Comparison, options: argparse.Namespace, runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Medians of every setting, and how they compare with TRL."""
    rows: dict[str, dict[str, Any]] = {}
    for name, measured in runs.items():
        rows[name] = {
            "setting": name,
            "tokens_per_second": statistics.median(run["tokens"]["response"] / run["seconds"] for run in measured),
            "iterations_per_minute": statistics.median(60 * run["steps"] / run["seconds"] for run in measured),
            "sampling_ms": 1000 * statistics.median(_per_token(run, "rollout") for run in measured),
            "score_ms": 1000 * statistics.median(_per_token(run, "score") for run in measured),
            "update_ms": 1000 * statistics.median(_per_token(run, "update") for run in measured),
            "peak_mib": statistics.median(run["peak_mib"] for run in measured),
            "mean_length": sum(run["tokens"]["response"] for run in measured)
            / sum(run["tokens"]["responses"] for run in measured),
        }
    for row in rows.values():
        row["times_default"] = ratio(row, rows.get(comparison.default), "tokens_per_second")
        row["times_careful"] = ratio(row, rows.get(comparison.careful), "tokens_per_second")
        row["iterations_times_default"] = ratio(row, rows.get(comparison.default), "iterations_per_minute")
        row["memory_of_default"] = ratio(row, rows.get(comparison.default), "peak_mib")
        row["memory_of_careful"] = ratio(row, rows.get(comparison.careful), "peak_mib")
    return list(rows.values())


def _per_token(run: Run, phase: str) -> float:
    return run["phases"][phase] / run["tokens"]["response"]


def columns(device: str) -> dict[str, tuple[str, str]]:
    """Columns of the table."""
    return {
        "response tokens / CPU s" if device == "cpu" else "response tokens / s": ("tokens_per_second", "{:.2f}"),
        "x default": ("times_default", "{:.2f}"),
        "x careful": ("times_careful", "{:.2f}"),
        "iterations / CPU min" if device == "cpu" else "iterations / min": ("iterations_per_minute", "{:.2f}"),
        "x default, iterations": ("iterations_times_default", "{:.2f}"),
        "ms / token: rollout": ("sampling_ms", "{:.1f}"),
        "score": ("score_ms", "{:.1f}"),
        "update": ("update_ms", "{:.1f}"),
        "peak MiB": ("peak_mib", "{:.0f}"),
        "of default": ("memory_of_default", "{:.2f}"),
        "of careful": ("memory_of_careful", "{:.2f}"),
        "mean length": ("mean_length", "{:.1f}"),
    }


PPO = Comparison("ppo", "PPO", SETTINGS, DEFAULT, CAREFUL, summarise=summarise, columns=columns)


def make_reward_model(model: Path, folder: Path) -> None:
    """A reward model with random weights: an adapter for the policy's base, and a head."""
    torch.manual_seed(0)
    reward_model = build_reward_model(BackboneConfig(str(model), lora=LoraOptions(r=16, alpha=32)), {"score": 1.0})
    for name, weight in reward_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    reward_model.save(folder)


def main() -> None:
    """Make the models, then measure all settings."""
    options = parse(PPO, batch_size=16, steps=3, repeats=3, is_shuffled=True)
    work = options.work.resolve()
    plan = write_plan(options, **NUMBERS, reward_model=str(work / "reward_model"))
    rows = work / "rows.jsonl"
    let_responses_end(work / "model", rows, MEAN_LENGTH, NUMBERS["max_new_tokens"], options.device)
    make_reward_model(work / "model", work / "reward_model")
    compare(PPO, options, plan)


if __name__ == "__main__":
    main()
