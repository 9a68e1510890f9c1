"""What the package's own ways on a CPU cost beside those of PyTorch: products of matrices, attention of runs.

    python benchmarks/cpu_kernels.py --out benchmarks/results

One thread, float32, processor time, sides alternated, medians. Sizes are those of the model that ``ppo.py`` trains.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from proxy_model import ARCHITECTURES
from side_by_side import commit, hardware
from torch import Tensor, nn

from lit_rlhf.models.layers import causal_blocks
from lit_rlhf.models.layers.products import PORTION, packed, product
from lit_rlhf.models.layers.run_attention import attend_runs

HIDDEN, _, HEADS, MLP, _ = ARCHITECTURES["proxy"]
WEIGHTS = ((HIDDEN, HIDDEN), (MLP, HIDDEN), (HIDDEN, MLP))
"""Outputs and inputs of a decoder layer's products."""
FEW_ROWS = (1, 4, 16)
RUN_LENGTHS = (100, 200, 400, 600, 1200)
TOKENS, ROUNDS = 2400, 15
ALL_WEIGHTS = 2**25
"""Numbers in all weights of one shape."""

Act = Callable[[], dict[str, float]]
"""Does a thing once; its processor seconds, phase by phase."""


class Pair(NamedTuple):
    """One thing done in two ways.

    Args:
        what: is done.
        size: of it.
        torch: PyTorch's way.
        ours: this package's.
    """

    what: str
    size: str
    torch: Act
    ours: Act


def products() -> Iterator[Pair]:
    """Products of a portion of rows by MKL and by oneDNN, and of few rows with weights as they are and packed.

    A model's weights do not stay in the processor's cache from step to step, so many weights take turns.
    """
    for outputs, inputs in WEIGHTS:
        weights = list(torch.randn(max(1, ALL_WEIGHTS // (outputs * inputs)), outputs, inputs))
        for rows in (PORTION, *FEW_ROWS):
            x, own = torch.randn(rows, inputs), weights if rows == PORTION else [*map(packed, weights)]
            what = "product of a portion" if rows == PORTION else "product of few rows"
            size = f"{rows} x {inputs} x {outputs}"
            yield Pair(what, size, calls(nn.functional.linear, x, weights), calls(product, x, own))


def calls(compute: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: Sequence[Tensor]) -> Act:
    """Products with one weight after another; one alone would be too short for the clock."""

    def act() -> dict[str, float]:
        begin = time.process_time()
        for weight in weights:
            compute(x, weight)
        return {"": (time.process_time() - begin) / len(weights)}

    return act


def attention() -> Iterator[Pair]:
    """Causal attention of runs by PyTorch's kernel and by products of matrices, however long they are."""
    for length in RUN_LENGTHS:
        count = max(1, TOKENS // length)
        ways = attending(length, count, most_keys=0), attending(length, count, most_keys=length)
        yield Pair("attention", f"{count} x {length} tokens", *ways)


def attending(length: int, count: int, most_keys: int) -> Act:
    """Attention of as many runs of one length, by products of matrices up to so many keys."""
    shape = (1, HEADS, count * length, HIDDEN // HEADS)
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    runs = [(start, start + length, ((start, start + length),)) for start in range(0, count * length, length)]

    def act() -> dict[str, float]:
        with patch.object(causal_blocks, "MOST_KEYS", most_keys):
            begin = time.process_time()
            output = attend_runs(*inputs, runs, [None] * len(runs))
            between = time.process_time()
            torch.autograd.grad(output, inputs, torch.ones_like(output))
        return {"forwards": between - begin, "backwards": time.process_time() - between}

    return act


def measure(pair: Pair) -> list[dict[str, Any]]:
    """Median milliseconds of both ways, a line per phase."""
    spent: list[tuple[dict[str, float], dict[str, float]]] = [(pair.torch(), pair.ours()) for _ in range(ROUNDS + 1)][
        1:
    ]
    lines = []
    for phase in spent[0][0]:
        theirs, own = (1000 * median(both[side][phase] for both in spent) for side in (0, 1))
        lines.append({"what": f"{pair.what} {phase}".strip(), "size": pair.size, "torch_ms": theirs, "ours_ms": own})
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    head = "| | size | PyTorch, ms | ours, ms | of it |"
    lines = [
        f"| {row['what']} | {row['size']} | {row['torch_ms']:.3f} | {row['ours_ms']:.3f} | "
        f"{row['ours_ms'] / row['torch_ms']:.2f} |\n"
        for row in rows
    ]
    return f"{head}\n|---|---|---|---|---|\n{''.join(lines)}"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for cpu_kernels.json and cpu_kernels.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [row for pair in chain(products(), attention()) for row in measure(pair)]
    print(table(rows))
    if options.out:
        found = {"hardware": hardware("cpu"), "commit": commit(), "torch": torch.__version__, "rows": rows}
        (options.out / "cpu_kernels.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        about = f"{found['hardware']}, torch {torch.__version__}, commit {found['commit']}."
        (options.out / "cpu_kernels.md").write_text(f"# Kernels on a CPU\n\n{about}\n\n{table(rows)}", encoding="utf-8")


if __name__ == "__main__":
    main()
