"""What is soaked: every algorithm on the embedded default, its rows mixed with rows that cannot be used."""

from __future__ import annotations

import gzip
import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_rlhf.embedded import resolve

CONFIGS = Path(__file__).parents[2] / "configs"
BROKEN_ROWS = ('{"prompt": "cut', "[1, 2]", '{"prompt": "no answer"', "\x00\x01\x02", '"a text"', "{}", "null")
"""Lines that are no rows."""


class Task(NamedTuple):
    """One algorithm.

    Args:
        name: of its configuration.
        num_rows: that are read.
        batch_size: rows of a step.
        has_rollouts: whether it learns from responses of its own, which a server judges.
    """

    name: str
    num_rows: int
    batch_size: int
    has_rollouts: bool


TASKS = (
    Task("sft", 640, 16, has_rollouts=False),
    Task("reward", 320, 8, has_rollouts=False),
    Task("dpo", 640, 16, has_rollouts=False),
    Task("ppo", 320, 16, has_rollouts=True),
    Task("grpo", 96, 4, has_rollouts=True),
    Task("rloo", 96, 4, has_rollouts=True),
    Task("reinforce", 320, 16, has_rollouts=True),
    Task("online_dpo", 160, 8, has_rollouts=True),
)
EPOCHS = 2


def write_rows(task: Task, file: Path, num_broken: int, seed: int) -> int:
    """The rows of a task's configuration, with broken ones at places that are drawn.

    Returns:
        How many examples a run must find in them: one a row, or as many as a ranking has pairs.
    """
    config = yaml.safe_load((CONFIGS / f"{task.name}.yaml").read_text(encoding="utf-8"))
    source = Path(resolve(config["data"]["init_args"]["train"]))
    content = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    rows = content.decode().splitlines()[: task.num_rows]
    num_examples = sum(_num_examples(json.loads(row)) for row in rows)
    draw = random.Random(seed)
    for _ in range(num_broken):
        rows.insert(draw.randrange(len(rows) + 1), draw.choice(BROKEN_ROWS))
    file.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return num_examples


def _num_examples(row: dict[str, Any]) -> int:
    if "completions" not in row:
        return 1
    ranks = [completion["rank"] for completion in row["completions"]]
    return sum(one != other for one, other in combinations(ranks, 2))


def overlay(task: Task, rows: Path, folder: Path, url: str | None, dropout: float = 0.1) -> dict[str, Any]:
    """What is set on top of a task's configuration.

    Args:
        task: which.
        rows: the file of rows.
        folder: of the run.
        url: of the reward server; None where there is none.
        dropout: of the adapter, where the algorithm has any.
    """
    model: dict[str, Any] = {"backbone": {"lora": {"dropout": dropout}}}
    if url is not None:
        ask = {"url": url, "timeout": 1.0, "retries": 4, "backoff": 0.05}
        model = {"rewards": [{"reward": {"class_path": "lit_rlhf.rewards.HttpReward", "init_args": ask}}]}
        model["sampling"] = {"max_new_tokens": 16}
    kind = "IterationCheckpoint" if task.has_rollouts else "StepCheckpoint"
    often = {"every_n_iterations": 1} if task.has_rollouts else {"minutes": 0.0}
    saving = {"class_path": f"lit_rlhf.callbacks.checkpoints.{kind}"}
    saving["init_args"] = {"dirpath": str(folder / "checkpoints"), **often}  # type: ignore[assignment]
    steps = task.num_rows // task.batch_size
    trainer = {
        "default_root_dir": str(folder),
        "max_epochs": EPOCHS,
        "limit_val_batches": 2,
        "val_check_interval": max(1, steps // 3),
        "callbacks": [saving],
    }
    data = {"train": str(rows), "on_bad_row": "drop", "batch_size": task.batch_size}
    return json.loads(json.dumps({"model": {"init_args": model}, "data": {"init_args": data}, "trainer": trainer}))
