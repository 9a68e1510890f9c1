"""Memory of four roles over one base, by role and phase: the tables of docs/memory.md.

    python benchmarks/memory.py                                   what is computed; seconds, on any machine
    python benchmarks/memory.py --device cpu                      and what a small model measures on a CPU
    python benchmarks/memory.py --device cuda --shape llama3_8b   and what a real shape measures on a GPU

Weights are random: they cost what others cost. What was measured is kept in ``benchmarks/results/memory.json``; every
call prints the tables and writes them into the page, between ``<!-- NAME -->`` and ``<!-- /NAME -->``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from side_by_side import commit, hardware
from static_memory import ROLES, SHAPES, base_bytes, cache_bytes, computed_bytes, make_config, total_bytes

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "memory.md"
RESULTS = HERE / "results" / "memory.json"
LARGE = ("reference", "llama2_7b", "llama3_8b")
ON_GPU = [(shape, quantization) for shape in ("reference", "llama3_8b") for quantization in ("nf4", "none")]
CARDS = (12, 16, 24, 80)
"""Sizes of cards, in GB."""
PHASES = ("rollout", "score", "update")
NAMES = {
    **{"base": "base", "policy": "policy adapter", "reference": "reference", "reward": "reward adapter and head"},
    **{"critic": "critic adapter and head", "gradients": "gradients", "optimizer": "Adam's state"},
}
SIZES = {
    "cpu": {"batch": 8, "prompt": 64, "response": 64, "token_budget": 512, "dtype": "float32"},
    "cuda": {"batch": 32, "prompt": 512, "response": 512, "token_budget": 8192, "dtype": "bfloat16"},
}
Results = dict[str, dict[str, Any]]
NOT_MEASURED = "not measured"


@cache
def computed(shape: str, quantization: str = "nf4", dtype: str = "bfloat16") -> dict[str, int]:
    """Bytes by role of a shape."""
    return computed_bytes(shape, quantization, dtype)


def static_table(results: Results) -> str:
    """What each role takes, in GB, and what four copies of the base would."""
    found = {shape: computed(shape) for shape in LARGE}
    rows = [[NAMES[role], *(_gb(found[shape][role]) for shape in LARGE)] for role in ROLES]
    rows.append(["**four roles on one base**", *(f"**{_gb(total_bytes(found[shape]))}**" for shape in LARGE)])
    for title, quantization in (("NF4", "nf4"), ("bfloat16", "none")):
        wholes = [total_bytes(found[shape]) + _copies(shape, quantization) for shape in LARGE]
        rows.append([f"four bases in {title}, the rest as above", *map(_gb, wholes)])
    caches = [f"{cache_bytes(make_config(shape, 'bfloat16'), 'bfloat16') // 1024} KiB" for shape in LARGE]
    rows.append(["a token in the sampler's cache", *caches])
    return _table(["GB", *(f"`{shape}`" for shape in LARGE)], rows)


def check_table(results: Results) -> str:
    """Bytes that were measured in a small model, beside those that are computed for it."""
    rows = []
    for quantization in ("nf4", "none"):
        run = results.get(f"cpu/small/{quantization}")
        wanted = computed("small", quantization, SIZES["cpu"]["dtype"])
        cells = [f"{run['found']['roles'][role]:,}" if run else NOT_MEASURED for role in ROLES]
        title = {"nf4": "NF4", "none": "float32"}[quantization]
        rows.append([f"{title}, measured", *cells])
        rows.append([f"{title}, computed", *(f"{wanted[role]:,}" for role in ROLES)])
    return _table(["bytes", *(NAMES[role] for role in ROLES)], rows)


def cpu_table(results: Results) -> str:
    """Peak memory of each phase of the small model on a CPU, and its speed."""
    return _phase_table(results, "cpu", [("small", "nf4"), ("small", "none")], "MB", 1e6)


def gpu_table(results: Results) -> str:
    """Peak memory of each phase on a GPU, and its speed."""
    return _phase_table(results, "cuda", ON_GPU, "GB", 1e9)


def fits_table(results: Results) -> str:
    """The largest batch and the longest context that cards of several sizes hold."""
    rows = []
    for shape, quantization in ON_GPU:
        run = results.get(f"cuda/{shape}/{quantization}")
        for name, title in (("batch", "responses at once, of 1,024 tokens each"), ("context", "tokens of one text")):
            known = {card: run["found"]["fits"][str(card)][name] if run else None for card in CARDS}
            cells = [NOT_MEASURED if known[card] is None else f"{known[card]:,}" for card in CARDS]
            rows.append([f"`{shape}`, {_weights(quantization)}", title, *cells])
    return _table(["model", "largest", *(f"{card} GB" for card in CARDS)], rows)


def ran_on(results: Results) -> str:
    """Where each measurement was taken."""
    said = []
    for key, run in sorted(results.items()):
        plan = run["plan"]
        versions = f"torch {run['torch']}, transformers {run['transformers']}, commit {run['commit']}"
        texts = f"{plan['batch']} texts of {plan['prompt']} + {plan['response']} tokens, budget {plan['token_budget']}"
        said.append(f"`{key}`: {run['hardware']}; {versions}; {texts}.")
    return "\n".join(f"- {line}" for line in said)


TABLES: dict[str, Callable[[Results], str]] = {
    **{"static": static_table, "check": check_table, "cpu": cpu_table, "gpu": gpu_table, "fits": fits_table},
    "ran-on": ran_on,
}


def rewritten(page: str, tables: dict[str, str]) -> str:
    """The page with each table in its place.

    Raises:
        ValueError: if a table has no place in the page.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page has no one place for '{name}', between '{begin.strip()}' and '{end}'")
        page = re.sub(f"{begin}.*?{end}", lambda _, whole=f"{begin}\n{table}\n\n{end}": whole, page, flags=re.DOTALL)
    return page


def measure(plan: dict[str, Any]) -> dict[str, Any]:
    """What ``sides/memory_probe.py`` finds in a process of its own."""
    with tempfile.TemporaryDirectory(dir=plan["work"]) as folder:
        given, found = Path(folder) / "plan.json", Path(folder) / "found.json"
        given.write_text(json.dumps(plan))
        paths = os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
        subprocess.run(
            [sys.executable, str(HERE / "sides" / "memory_probe.py"), str(given), str(found)],
            env=environment,
            stdout=sys.stderr,
            check=True,
        )
        return json.loads(found.read_text())


def main() -> None:
    """Measure what is asked for, print the tables and write them into the page."""
    options = _parse()
    results: Results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    if options.device is not None:
        plan = _plan(options)
        results[f"{options.device}/{plan['shape']}/{plan['quantization']}"] = {
            "plan": plan,
            "found": measure({**plan, "work": options.work and str(options.work)}),
            "hardware": hardware(options.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": commit(),
        }
        options.results.write_text(json.dumps(results, indent=1) + "\n")
        results = json.loads(options.results.read_text())  # as it will be read: with keys that are text
    tables = {name: table(results) for name, table in TABLES.items()}
    print(*tables.values(), sep="\n\n")
    options.page.write_text(rewritten(options.page.read_text(encoding="utf-8"), tables), encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, help="measure on it; without, tables are computed alone")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the Llama (small)")
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4", help="of the base (nf4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 on a GPU")
    for name in ("batch", "prompt", "response", "token_budget"):
        parser.add_argument(f"--{name}", type=int, help="of the iteration that is measured")
    parser.add_argument("--search", type=int, default=1024, help="tokens of a text where their number is searched")
    parser.add_argument("--work", type=Path, help="folder for the weights, 16 GB for 8B parameters")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    """What is measured."""
    sizes = {name: vars(options)[name] or default for name, default in SIZES[options.device].items()}
    fixed = {"gradient_checkpointing": True, "cards": CARDS if options.device == "cuda" else ()}
    return {**{name: vars(options)[name] for name in ("device", "shape", "quantization", "search")}, **sizes, **fixed}


def _phase_table(results: Results, device: str, models: Iterable[tuple[str, str]], unit: str, size: float) -> str:
    rows = []
    for shape, quantization in models:
        run = results.get(f"{device}/{shape}/{quantization}")
        cells = [NOT_MEASURED] * 6
        if run:
            found = run["found"]
            sizes = [
                total_bytes(found["roles"]) - found["roles"]["gradients"],
                *(found["phases"][name] for name in PHASES),
            ]
            speeds = (found["speed"][f"{name}/tokens_per_second"] for name in ("rollout", "train"))
            cells = [*(f"{number / size:.1f}" for number in sizes), *(f"{speed:,.0f}" for speed in speeds)]
        rows.append([f"`{shape}`, {_weights(quantization)}", *cells])
    columns = [
        "model",
        f"at rest, {unit}",
        *(f"+ {name}" for name in PHASES),
        "rollout tokens / s",
        "update tokens / s",
    ]
    return _table(columns, rows)


def _copies(shape: str, quantization: str) -> int:
    """Bytes that four bases take beyond the one in NF4."""
    return 4 * base_bytes(shape, quantization) - computed(shape)["base"]


def _weights(quantization: str) -> str:
    return {"nf4": "NF4", "none": "not quantised"}[quantization]


def _gb(number: int) -> str:
    return f"{number / 1e9:.2f}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
