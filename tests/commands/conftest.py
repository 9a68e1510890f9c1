"""A small preference task, its configuration, and a run that was trained on it from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import main

QUESTIONS = ("capital of France", "legs of a spider", "name of a fox", "colour of rain", "end of a story", "kind word")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 conversational rows: the kind answer is chosen."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is the {question}, number {number}?"}],
            "chosen": [{"role": "assistant", "content": "Thank you, that was a kind question."}],
            "rejected": [{"role": "assistant", "content": "I do not know, go away."}],
        }
        for number in range(4)
        for question in QUESTIONS
    ]
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Path], pairs_file: Path) -> Path:
    """Twelve steps of DPO, validated every four."""
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": "lit_rlhf.DPOModule",
            "init_args": {
                "backbone": {"name_or_path": str(tiny_llama()), "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "datamodules.PreferenceDataModule",
            "init_args": {
                "train": str(pairs_file),
                "validation": str(pairs_file),
                "predict": str(pairs_file),
                "batch_size": 4,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "val_check_interval": 4,
            "log_every_n_steps": 1,
            "callbacks": [
                {
                    "class_path": "lit_rlhf.callbacks.samples.SampleTable",
                    "init_args": {"num_prompts": 2, "max_new_tokens": 8},
                }
            ],
        },
    }
    file = tmp_path_factory.mktemp("config") / "dpo.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def fit(config_file: Path) -> Callable[..., None]:
    """``fit(folder, *words)``: train into a folder, with more words on the command line."""
    return lambda folder, *words: main(
        ["fit", "--config", str(config_file), f"--trainer.default_root_dir={folder}", *words]
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, fit: Callable[..., None]) -> Path:
    """The folder of a run that went through. Do not write into it."""
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    fit(folder)
    return folder
