"""What a checkpoint costs: seconds, bytes and memory, beside the file that Lightning writes by itself.

    python benchmarks/checkpoints.py --out benchmarks/results

The states of AdamW runs on models of two sizes: weights that are trained, both moments of each, the random state.
Lightning's file is neither flushed to the disk nor does it carry a checksum; ours is and does. Each has a process of
its own. Training stands still for as long as a file is written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from proxy_model import ARCHITECTURES
from side_by_side import commit, hardware

from lit_rlhf.callbacks.random_state import random_state
from lit_rlhf.checkpoints.plugin import SafeCheckpointIO

RANK, REPEATS, SECONDS_BETWEEN = 16, 5, 300
STATES = {"proxy, LoRA": "proxy", "proxy, all weights": "proxy", "reference, LoRA": "reference"}
WAYS = {"lit_rlhf": SafeCheckpointIO, "Lightning": TorchCheckpointIO}


def shapes(arch: str, is_lora: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what is trained: adapters of every linear layer but the head, or everything."""
    hidden, layers, _, mlp, vocabulary = ARCHITECTURES[arch]
    linear = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (hidden, hidden))
    linear |= {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
    for layer in range(layers):
        for name, (rows, columns) in linear.items():
            place = f"model.layers.{layer}.{name}"
            if is_lora:
                yield f"{place}.lora_A.policy.weight", (RANK, columns)
                yield f"{place}.lora_B.policy.weight", (rows, RANK)
            else:
                yield f"{place}.weight", (rows, columns)
    if not is_lora:
        yield from (("embed_tokens.weight", (vocabulary, hidden)), ("lm_head.weight", (vocabulary, hidden)))


def state(name: str) -> dict[str, Any]:
    """A checkpoint as a Trainer hands it over."""
    weights = {key: torch.randn(shape) for key, shape in shapes(STATES[name], "LoRA" in name)}
    moments = {
        number: {"step": torch.tensor(7.0), "exp_avg": torch.randn_like(w), "exp_avg_sq": torch.randn_like(w)}
        for number, w in enumerate(weights.values())
    }
    groups = [{"lr": 1e-5, "betas": (0.9, 0.999), "params": list(moments)}]
    return {
        "epoch": 0,
        "global_step": 7,
        "state_dict": weights,
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "callbacks": {"RandomState": {"ranks": [random_state()]}},
    }


def megabytes() -> float:
    """Most memory that this process has taken so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def timed(act: Callable[[], Any]) -> float:
    """Median seconds of an act."""
    spent = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        act()
        spent.append(time.perf_counter() - began)
    return median(spent)


def measure(name: str, way: str, folder: Path, pipe: Any) -> None:
    """Write and read one state in one way, in this process."""
    torch.set_num_threads(1)
    tree, plugin, path = state(name), WAYS[way](), folder / "last.ckpt"
    before = megabytes()
    write = timed(lambda: plugin.save_checkpoint(tree, path))
    more = megabytes() - before
    read = timed(lambda: plugin.load_checkpoint(path, weights_only=True))
    pipe.send({"state": name, "way": way, "megabytes": path.stat().st_size / 1e6, "more_memory_megabytes": more,
               "write_seconds": write, "read_seconds": read, "share_of_training": write / SECONDS_BETWEEN})  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    head = "| state | file of | MB | seconds to write | to read | more memory, MB | of training, one each 5 minutes |"
    lines = [
        f"| {row['state']} | {row['way']} | {row['megabytes']:.1f} | {row['write_seconds']:.3f} | "
        f"{row['read_seconds']:.3f} | {row['more_memory_megabytes']:.0f} | {row['share_of_training']:.2%} |\n"
        for row in rows
    ]
    return f"{head}\n|---|---|---|---|---|---|---|\n{''.join(lines)}"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STATES, nargs="+", default=list(STATES))
    parser.add_argument("--work", type=Path, help="folder on the disk to measure; a temporary one if not given")
    parser.add_argument("--out", type=Path, help="folder for checkpoints.json and checkpoints.md")
    options = parser.parse_args()
    rows = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for name in options.only:
            for way in WAYS:
                here, there = context.Pipe()
                process = context.Process(target=measure, args=(name, way, Path(folder), there))
                process.start()
                rows.append(here.recv())
                process.join()
    print(table(rows))
    if options.out:
        found = {"hardware": hardware("cpu"), "commit": commit(), "torch": torch.__version__, "rows": rows}
        (options.out / "checkpoints.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        text = f"# Checkpoints\n\n{found['hardware']}, commit {found['commit']}.\n\n{table(rows)}"
        (options.out / "checkpoints.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
