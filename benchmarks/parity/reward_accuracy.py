"""Held-out accuracy of reward models after one epoch: ours, TRL's from the same start, and what words alone tell.

    python benchmarks/parity/reward_accuracy.py --trl-python TRL --model DIR --data hh.jsonl.gz --out OUT

A seed draws the held-out rows, the order of the others, the adapter and the score head. Both sides see the same rows in
the same batches. Rows are those that the model can take whole. The table goes to ``--results``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch
from beside_trl import Plan, fit, parser, rows_that_fit, write_rows
from reward import Course, make_module, write_starts
from side_by_side import commit, hardware
from word_baseline import Row, bag_of_words_accuracy, shorter_wins_accuracy

from datamodules import PreferenceDataModule

SETTINGS = {"lora": {"tuning": "lora", "lr": 1e-3, "centring": 0.0, "margins": False}}
NUMBERS: dict[str, Any] = {"batch_size": 16, "max_length": 512, "token_budget": 4096, "max_grad_norm": 1.0}
HELD_OUT = 0.2
BASELINES = ("bag of words", "shorter wins")


def split(rows: list[Row], seed: int, batch_size: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and held-out ones, both in full batches."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    num_test = int(len(rows) * HELD_OUT) // batch_size * batch_size
    num_train = (len(rows) - num_test) // batch_size * batch_size
    return [rows[number] for number in order[num_test:][:num_train]], [rows[number] for number in order[:num_test]]


def make_plan(folder: Path, model: str, train: list[Row], test: list[Row], seed: int) -> Plan:
    """Write rows and starts into a folder; what both sides are told."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **NUMBERS,
        "steps": len(train) // NUMBERS["batch_size"],
        "settings": SETTINGS,
        "model": model,
        "rows": write_rows(train, folder / "rows.jsonl"),
        "test_rows": write_rows(test, folder / "test_rows.jsonl"),
        "scratch": str(folder / "scratch"),
        **write_starts(model, folder, seed),
    }


def run(plan: Plan, settings: dict[str, Any]) -> dict[str, float]:
    """Train under one setting, then test."""
    module = make_module(plan, settings)
    trainer = fit(module, plan["rows"], plan, Course())
    sizes = {name: plan[name] for name in ("batch_size", "max_length", "token_budget")}
    data = PreferenceDataModule(test=plan["test_rows"], tokenizer=plan["model"], **sizes)
    (measured,) = trainer.test(module, datamodule=data, verbose=False)
    names = {"accuracy": "test/scores/accuracy", "margin": "test/scores/margin", "loss": "test/loss"}
    return {name: measured[column] for name, column in names.items()}


def measure(folder: Path, trl_python: str, model: str, rows: list[Row], seed: int) -> dict[str, Any]:
    """All accuracies of one split."""
    train, test = split(rows, seed, NUMBERS["batch_size"])
    plan = make_plan(folder, model, train, test, seed)
    (folder / "plan.json").write_text(json.dumps(plan))
    script = Path(__file__).with_name("reward_accuracy_trl.py")
    subprocess.run([trl_python, str(script), str(folder / "plan.json")], check=True)
    theirs = json.loads((folder / "trl.json").read_text())
    return {
        "seed": seed,
        "steps": plan["steps"],
        "held_out": len(test),
        "trl_version": theirs["version"],
        "runs": {name: {"lit_rlhf": run(plan, setting), "TRL": theirs[name]} for name, setting in SETTINGS.items()},
        "bag of words": bag_of_words_accuracy(train, test),
        "shorter wins": shorter_wins_accuracy(test),
    }


def lines(measured: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Accuracies by seed, of everything that orders pairs."""
    models = {
        f"{side}, {tuning}": [seed["runs"][tuning][side]["accuracy"] for seed in measured]
        for tuning in SETTINGS
        for side in ("lit_rlhf", "TRL")
    }
    return {**models, **{name: [seed[name] for seed in measured] for name in BASELINES}}


def table(measured: list[dict[str, Any]]) -> str:
    """The accuracies as Markdown."""
    heads = ["held-out accuracy", *(f"seed {seed['seed']}" for seed in measured), "mean"]
    columns = ((name, [*values, statistics.mean(values)]) for name, values in lines(measured).items())
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in columns]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])


def write(options: argparse.Namespace, measured: list[dict[str, Any]]) -> None:
    """JSON with everything, Markdown with the table."""
    facts = {
        "hardware": hardware("cpu"),
        "versions": {"trl": measured[0]["trl_version"], "torch": torch.__version__},
        "commit": commit(),
        "model": Path(options.model).name,
        "data": options.data.name,
        "steps": measured[0]["steps"],
        "held_out_pairs": measured[0]["held_out"],
        **NUMBERS,
        "settings": SETTINGS,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / "reward_accuracy"
    stem.with_suffix(".json").write_text(json.dumps({**facts, "measured": measured}, indent=1) + "\n")
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    text = f"# Reward models after one epoch of HH harmless\n\n{table(measured)}\n\n{said}\n"
    stem.with_suffix(".md").write_text(text)


def main() -> None:
    """Measure every seed."""
    options = parser(__doc__, is_start_embedded=False)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    chosen = options.parse_args()
    model = str(Path(chosen.model).resolve())
    rows = rows_that_fit(chosen.data, model, NUMBERS["max_length"])
    measured = []
    for seed in chosen.seeds:
        folder = chosen.out.resolve() / f"seed_{seed}"
        measured.append(measure(folder, chosen.trl_python, model, rows, seed))
        print(table(measured), flush=True)
    write(chosen, measured)


if __name__ == "__main__":
    main()
