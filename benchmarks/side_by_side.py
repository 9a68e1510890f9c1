"""Training beside TRL 1.16 on real preference pairs: tokens per second and peak memory of one setting after another.

Fresh process for every measurement, sides alternated, medians. A real token is one of prompt + response, the prompt
counted once per response, padding never. Time is processor time of one thread on a CPU, and on the clock on a GPU.

The model has random weights, its tokenizer is a BPE trained on the rows; both are made in ``--work``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hh_rows import read_rows
from proxy_model import ARCHITECTURES, make_model, train_tokenizer

HERE = Path(__file__).parent
CONDITIONS = ("arch", "device", "dtype", "quantization", "batch_size", "steps", "warmup", "max_length", "is_shuffled")
"""What must be the same of all runs of one table."""

Setting = dict[str, Any]
Run = dict[str, Any]


class Comparison(NamedTuple):
    """What is compared.

    Args:
        name: what scripts, results and scratch are called after.
        title: the same in words.
        settings: what each side is told, by what the line is called; ``side`` says whose it is.
        default: name of TRL's setting as it comes.
        careful: name of TRL's setting as a careful user would have it.
        useful_flops: operations that the measured steps cannot do without, of an architecture, its tokens, a setting.
        summarise: medians of every setting; None = those of training steps on the same tokens.
        columns: of the table on a device, each with its key in a summary and its form; None = those of training steps.
        rows: what ``--data`` holds.
        facts: more to be written down, by architecture.
    """

    name: str
    title: str
    settings: dict[str, Setting]
    default: str
    careful: str
    useful_flops: Callable[[str, dict[str, int], Setting], float] | None = None
    summarise: Callable[[Comparison, argparse.Namespace, dict[str, list[Run]]], list[dict[str, Any]]] | None = None
    columns: Callable[[str], dict[str, tuple[str, str]]] | None = None
    rows: str = "rows in Anthropic's HH form, .jsonl or .jsonl.gz"
    facts: Callable[[str], dict[str, Any]] = lambda arch: {}


def prepare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make model, tokenizer and rows; what both sides are told."""
    rows = list(read_rows(options.data))
    if options.is_shuffled:
        random.Random(0).shuffle(rows)
    tokenizer = train_tokenizer([text for row in rows for text in row.values()])
    make_model(options.arch, options.dtype, options.device, work / "model")
    tokenizer.save_pretrained(work / "model")
    texts = ([row["prompt"] + row[key] for key in ("chosen", "rejected")] for row in rows)
    fits = [max(map(len, tokenizer(pair).input_ids)) < options.max_length for pair in texts]  # TRL drops or cuts others
    rows = [row for row, does_fit in zip(rows, fits, strict=True) if does_fit]
    needed = options.batch_size * (options.steps + options.warmup)
    if len(rows) < needed:
        raise ValueError(f"{options.data} holds {len(rows)} usable rows, {needed} are needed")
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:needed]))
    return {
        "model": str(work / "model"),
        "rows": str(work / "rows.jsonl"),
        "scratch": str(work / "scratch"),
        "lora": {"r": 16, "lora_alpha": 32},
        "steps": options.steps + options.warmup,
        "warmup": options.warmup,
        **{name: getattr(options, name) for name in ("batch_size", "max_length", "device", "dtype", "quantization")},
    }


def measure(plan: Path, name: str, setting: Setting, trl_python: str) -> Run:
    """One setting in a fresh process."""
    out = plan.with_name("measured.json")
    python = trl_python if setting["side"] == "trl" else sys.executable
    script = HERE / "sides" / f"{name}_{setting['side']}.py"
    threads = {"OMP_NUM_THREADS": "1"} if json.loads(plan.read_text())["device"] == "cpu" else {}
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **threads, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, str(script), str(plan), json.dumps(setting), str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} {setting} failed:\n{done.stdout[-3000:]}")
    return json.loads(out.read_text())


def summarise(comparison: Comparison, options: argparse.Namespace, runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Medians of every setting, and how they compare with TRL."""
    counts = [run["tokens"] for measured in runs.values() for run in measured]
    if len({count["real"] for count in counts}) > 1:
        raise ValueError(f"both sides must be measured on the same tokens, and were not: {counts}")
    tokens = max(counts, key=len)  # our side counts more than one kind
    rows: dict[str, dict[str, Any]] = {}
    for name, measured in runs.items():
        seconds = statistics.median(run["seconds"] for run in measured)
        rows[name] = {
            "setting": name,
            "tokens_per_second": tokens["real"] / seconds,
            "seconds_per_step": seconds / measured[0]["steps"],
            "peak_mib": statistics.median(run["peak_mib"] for run in measured),
        }
        if options.device == "cuda" and comparison.useful_flops:
            flops = comparison.useful_flops(options.arch, tokens, comparison.settings[name])
            rows[name]["mfu"] = flops / seconds / (options.peak_tflops * 1e12)
    for row in rows.values():
        row["times_default"] = ratio(row, rows.get(comparison.default), "tokens_per_second")
        row["times_careful"] = ratio(row, rows.get(comparison.careful), "tokens_per_second")
        row["memory_of_default"] = ratio(row, rows.get(comparison.default), "peak_mib")
    return list(rows.values())


def ratio(row: dict[str, Any], other: dict[str, Any] | None, key: str) -> float | None:
    """How often a number of another setting goes into that of this one; None where the other was not measured."""
    return row[key] / other[key] if other else None


def training_columns(device: str) -> dict[str, tuple[str, str]]:
    """Columns of a table of training steps."""
    columns = {
        "tokens / CPU s" if device == "cpu" else "tokens / s": ("tokens_per_second", "{:.1f}"),
        "x default": ("times_default", "{:.2f}"),
        "x careful": ("times_careful", "{:.2f}"),
        "CPU s / step" if device == "cpu" else "s / step": ("seconds_per_step", "{:.3f}"),
        "peak MiB": ("peak_mib", "{:.0f}"),
        "of default": ("memory_of_default", "{:.2f}"),
    }
    if device == "cuda":
        columns["MFU"] = ("mfu", "{:.3f}")
    return columns


def table(comparison: Comparison, summary: list[dict[str, Any]], device: str) -> str:
    """The medians as Markdown."""
    columns = {comparison.title: ("setting", "{}"), **(comparison.columns or training_columns)(device)}
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in summary:
        cells = ["" if row[key] is None else form.format(row[key]) for key, form in columns.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hardware(device: str) -> str:
    """What it ran on, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, one thread of {os.cpu_count()}"


@cache
def commit() -> str:
    """The commit that was measured, marked where the tree differs from it before the first results are written."""
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


def write(
    comparison: Comparison, options: argparse.Namespace, runs: dict[str, list[Run]], summary: list[dict[str, Any]]
) -> Path:
    """JSON with every run, Markdown with the table."""
    versions = {key: value for measured in runs.values() for key, value in measured[0]["versions"].items()}
    facts = {
        "hardware": hardware(options.device),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": dict(
            zip(("hidden", "layers", "heads", "mlp", "vocabulary"), ARCHITECTURES[options.arch], strict=True)
        ),
        **comparison.facts(options.arch),
        "data": options.data.name,
        **{name: getattr(options, name) for name in (*CONDITIONS, "repeats", "load")},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    settings = (options.arch, options.device, options.dtype, options.quantization)
    stem = options.out / "_".join([comparison.name, *settings])
    stem.with_suffix(".json").write_text(json.dumps({**facts, "summary": summary, "runs": runs}, indent=1) + "\n")
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items() if value != "")
    stem.with_suffix(".md").write_text(
        f"# {comparison.title} beside TRL\n\n{table(comparison, summary, options.device)}\n\n{said}\n"
    )
    return stem.with_suffix(".md")


def parse(comparison: Comparison, **defaults: Any) -> argparse.Namespace:
    """The command line; some of its defaults may be others."""
    parser = argparse.ArgumentParser(description=f"{comparison.title}: {__doc__.splitlines()[0]}")
    work = HERE.parent / "runs" / f"benchmark_{comparison.name}"
    parser.add_argument("--trl-python", required=True, help="interpreter of an environment with TRL")
    parser.add_argument("--data", type=Path, required=True, help=comparison.rows)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=work, help="scratch folder")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="proxy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none")
    parser.add_argument("--batch-size", type=int, default=8, help="rows per step")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument(
        "--is-shuffled", action=argparse.BooleanOptionalAction, default=False, help="take rows at random, not the first"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--earlier", type=Path, help="results (.json) whose runs of the settings that are not measured now are kept"
    )
    parser.add_argument("--load", default="", help="what else the machine was doing, to be noted")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, dense, for the MFU")
    parser.add_argument(
        "--only", nargs="*", default=list(comparison.settings), help="settings whose names contain one of these"
    )
    parser.set_defaults(**defaults)
    return parser.parse_args()


def compare(comparison: Comparison, options: argparse.Namespace, plan: Path) -> None:
    """Measure all settings in turn, several times over, and write what came of it, as far as it has come."""
    names = chosen(comparison, options)
    runs: dict[str, list[Run]] = earlier_runs(comparison, options) if options.earlier else {}
    runs = {name: [] if name in names else runs.get(name, []) for name in comparison.settings}
    for number in range(options.repeats):
        for name in names:
            runs[name].append(run := measure(plan, comparison.name, comparison.settings[name], options.trl_python))
            progress = f"{number + 1}/{options.repeats} {name}"
            print(f"{progress}: {run['seconds']:.2f} s, {run['peak_mib']:.0f} MiB", flush=True)
            made = {name: measured for name, measured in runs.items() if measured}
            summary = (comparison.summarise or summarise)(comparison, options, made)
            file = write(comparison, options, made, summary)
    print(table(comparison, summary, options.device))
    print(file)


def earlier_runs(comparison: Comparison, options: argparse.Namespace) -> dict[str, list[Run]]:
    """Runs of earlier results, of what is measured now.

    Raises:
        ValueError: if they were measured under other conditions.
    """
    facts = json.loads(options.earlier.read_text())
    same = {name: getattr(options, name) for name in CONDITIONS} | {"hardware": hardware(options.device)}
    if odd := [name for name, value in same.items() if facts[name] != value]:
        raise ValueError(f"{options.earlier}: {odd[0]} is {facts[odd[0]]!r} there, and {same[odd[0]]!r} here")
    return {name: runs for name, runs in facts["runs"].items() if name in comparison.settings}


def chosen(comparison: Comparison, options: argparse.Namespace) -> dict[str, Setting]:
    """The settings that ``--only`` leaves."""
    return {
        name: setting for name, setting in comparison.settings.items() if any(part in name for part in options.only)
    }


def write_plan(options: argparse.Namespace, **more: Any) -> Path:
    """Prepare, and write what both sides are told."""
    options.work.mkdir(parents=True, exist_ok=True)
    plan = options.work.resolve() / "plan.json"
    plan.write_text(json.dumps({**prepare(options, plan.parent), **more}))
    return plan
