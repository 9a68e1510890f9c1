"""Folders as runs leave them, written by hand, and a browser to look at what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlhf.callbacks.metrics_file import MetricsFile
from tests.reports.browser import Browser, chromium

FACTS = {
    "state": "finished",
    "algorithm": "PPOModule",
    "done": "iteration 3",
    "started": "2026-01-02 03:04 UTC",
    "seconds": 75.0,
    "command": "python -m lit_rlhf fit --config ppo.yaml",
    "device": "cpu (x86_64)",
    "versions": {"lit-rlhf": "0.1.0", "torch": "2.11"},
    "warnings": ["iteration 2: KL is running away: rollout/kl is 40"],
    "reliability": [
        {"low": 0.5, "high": 0.55, "confidence": 0.52, "accuracy": 0.5, "num_pairs": 40},
        {"low": 0.95, "high": 1.0, "confidence": 0.97, "accuracy": 0.9, "num_pairs": 10},
    ],
}

CONFIG = {
    "seed_everything": 7,
    "model": {
        "class_path": "lit_rlhf.PPOModule",
        "init_args": {"backbone": {"name_or_path": "embedded:tiny_llama"}, "kl": {"coef": 0.05, "target": None}},
    },
    "data": {"class_path": "datamodules.PromptDataModule", "init_args": {"train": "embedded:prompts_train.jsonl"}},
    "trainer": {"max_epochs": 1, "default_root_dir": "runs/ppo"},
}


def metrics(num: int = 4) -> list[dict[str, float]]:
    """Rows of a run with rollouts in which everything moves."""
    names = ("score", "kl", "entropy", "length", "score_std", "rewards/kind", "rewards/short")
    rows = []
    for step in range(num):
        row = {f"{split}/{name}": step * (at + 1.0) for split in ("rollout", "val") for at, name in enumerate(names)}
        more = {"train/data/dropped": 0.25, "train/data/dropped/too_long": 0.25, "train/data/truncated": 0.0}
        times = {"time/rollout": 3.0, "time/update": 1.0, "train/tokens_per_second": 100.0 + step}
        rows.append({"step": float(step), **row, **more, **times})
    return rows


def samples(num_prompts: int = 7) -> list[dict[str, Any]]:
    """Responses to the same prompts before and after, with their scores."""
    return [
        {
            "step": step,
            "iteration": step,
            "prompt": f"Question {number}?",
            "response": f"Answer {number} at {step}.",
            "score": float(number * (1 + step)),
            "kl": 0.5 * step,
            "length": 3 + number,
            "finished": number > 0,
        }
        for step in (0, 3)
        for number in range(num_prompts)
    ]


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """``finished(name, facts=, config=, rows=, responses=)``: the folder of a run; None leaves a file out."""

    def make(
        name: str = "run",
        *,
        facts: dict[str, Any] | None = FACTS,
        config: dict[str, Any] | None = CONFIG,
        rows: list[dict[str, float]] | None = None,
        responses: list[dict[str, Any]] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        log = MetricsFile(folder)
        for row in metrics() if rows is None else rows:
            log.log_metrics(row, int(row["step"]))
        if facts is not None:
            (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
        if config is not None:
            (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        write_lines(folder / "samples.jsonl", samples() if responses is None else responses)
        return folder

    return make


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; tests that look at pages are skipped where there is none."""
    program = chromium()
    if program is None:
        pytest.skip("needs a Chromium: chromium or google-chrome on the PATH")
    with Browser(program, tmp_path_factory.mktemp("browser")) as opened:
        yield opened
