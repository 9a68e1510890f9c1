"""DPO on pairs about pictures beside TRL 1.16: pictures through the tower, seconds per pair, and peak memory.

    python benchmarks/vision.py --trl-python /path/to/trl/bin/python --data color_pairs_dev.jsonl
    python benchmarks/vision.py ... --device cuda --arch reference --dtype bfloat16 --quantization nf4

Fresh process for every measurement, sides alternated, medians, as ``side_by_side.py`` has them; each pair has a picture
of its own. Only the decoder is trained, on both sides. The tower is a small or a large share of the work
(``llava_model.py``). TRL cannot keep what the reference said of pairs with pictures, so its careful user only turns
gradient checkpointing off. On a CPU, it is given the response-only head that it has on a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from itertools import islice
from pathlib import Path
from typing import Any

from llava_model import TOWERS, make_llava
from nlvr_rows import read_rows, texts_of
from side_by_side import Comparison, Run, chosen, compare, measure, parse, ratio

SHARES = ("light", "heavy")
DEFAULT, CAREFUL = "TRL default (checkpointing)", "TRL careful (no checkpointing)"
LIVE, KEPT = "ours, live reference", "ours, kept reference"


def trl(gradient_checkpointing: bool) -> dict[str, Any]:
    """A setting of TRL's side; its reference is live."""
    return {"side": "trl", "gradient_checkpointing": gradient_checkpointing}


def ours(cached_reference: bool, token_budget: int = 4096) -> dict[str, Any]:
    """A setting of our side."""
    return {
        "side": "lit_rlhf",
        "cached_reference": cached_reference,
        "gradient_checkpointing": False,
        "fused": True,
        "token_budget": token_budget,
    }


WAYS = {DEFAULT: trl(True), CAREFUL: trl(False), LIVE: ours(False), KEPT: ours(True)}


def named(share: str, way: str) -> str:
    """What a line of the table is called."""
    return f"{share} tower, {way}"


SETTINGS = {named(share, way): {**WAYS[way], "tower": share} for share in SHARES for way in WAYS}


def summarise(comparison: Comparison, options: argparse.Namespace, runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Medians of every setting, and how they compare with TRL's on the same tower.

    Raises:
        ValueError: if both sides were not measured on the same tokens.
    """
    counts = {run["tokens"]["real"] for measured in runs.values() for run in measured}
    if len(counts) > 1:
        raise ValueError(f"both sides must be measured on the same tokens, and were not: {sorted(counts)}")
    rows: dict[str, dict[str, Any]] = {}
    for name, measured in runs.items():
        pairs = options.batch_size * measured[0]["steps"]
        shown = options.batch_size * (measured[0]["steps"] + options.warmup)
        rows[name] = {
            "setting": name,
            "pictures_per_pair": statistics.median(run["pictures"] / shown for run in measured),
            "seconds_per_pair": statistics.median(run["seconds"] / pairs for run in measured),
            "peak_mib": statistics.median(run["peak_mib"] for run in measured),
        }
    for name, row in rows.items():
        share = comparison.settings[name]["tower"]
        for key, way in (("default", DEFAULT), ("careful", CAREFUL)):
            other = rows.get(named(share, way))
            seconds = ratio(row, other, "seconds_per_pair")
            row[f"times_{key}"] = 1 / seconds if seconds else None
            row[f"memory_of_{key}"] = ratio(row, other, "peak_mib")
    return list(rows.values())


def columns(device: str) -> dict[str, tuple[str, str]]:
    """Columns of the table."""
    return {
        "pictures through the tower / pair": ("pictures_per_pair", "{:.2f}"),
        "CPU s / pair" if device == "cpu" else "s / pair": ("seconds_per_pair", "{:.3f}"),
        "x default": ("times_default", "{:.2f}"),
        "x careful": ("times_careful", "{:.2f}"),
        "peak MiB": ("peak_mib", "{:.0f}"),
        "of default": ("memory_of_default", "{:.2f}"),
        "of careful": ("memory_of_careful", "{:.2f}"),
    }


def towers(arch: str) -> dict[str, Any]:
    """What the towers are, to be written down."""
    return {"towers": {share: tower._asdict() for share, tower in TOWERS[arch].items()}}


VISION = Comparison(
    "vision",
    "DPO with pictures",
    SETTINGS,
    named("light", DEFAULT),
    named("light", CAREFUL),
    summarise=summarise,
    columns=columns,
    rows="rows of a picture's file, prompt, chosen and rejected, .jsonl",
    facts=towers,
)


def write_plan(options: argparse.Namespace, work: Path) -> Path:
    """Make models and rows, and write what both sides are told.

    Raises:
        ValueError: if there are too few rows.
    """
    steps = options.steps + options.warmup
    rows = list(islice(read_rows(options.data), options.batch_size * steps))
    if len(rows) < options.batch_size * steps:
        raise ValueError(f"{options.data} shows {len(rows)} pictures, {options.batch_size * steps} are needed")
    work.mkdir(parents=True, exist_ok=True)
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for share in SHARES:
        make_llava(options.arch, share, texts_of(rows), work / share, options.dtype, options.device)
    plan = {
        "model": str(work / "light"),  # whose processor is that of the other, too
        "models": {share: str(work / share) for share in SHARES},
        "rows": str(work / "rows.jsonl"),
        "scratch": str(work / "scratch"),
        "cache": str(work / "reference_logprobs"),
        "lora": {"r": 16, "lora_alpha": 32},
        "steps": steps,
        **{name: getattr(options, name) for name in ("batch_size", "warmup", "max_length")},
        **{name: getattr(options, name) for name in ("device", "dtype", "quantization")},
    }
    (work / "plan.json").write_text(json.dumps(plan))
    return work / "plan.json"


def main() -> None:
    """Measure; what the reference says is kept first."""
    options = parse(VISION, arch="small", steps=3, repeats=3)
    work = options.work.resolve()
    shutil.rmtree(work / "reference_logprobs", ignore_errors=True)  # of an earlier run with other rows
    plan = write_plan(options, work)
    for name, setting in chosen(VISION, options).items():
        if KEPT in name:
            measure(plan, VISION.name, setting, options.trl_python)
    compare(VISION, options, plan)


if __name__ == "__main__":
    main()
