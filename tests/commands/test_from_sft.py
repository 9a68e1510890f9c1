"""The path from the command line: reward models, DPO and PPO go on from the folder of an SFT run."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_rlhf.callbacks.metrics_file import read_metrics
from lit_rlhf.cli import main
from lit_rlhf.commands.finished_run import backbone_config, load_tokenizer
from lit_rlhf.embedded import resolve
from lit_rlhf.models.building import build_backbone
from lit_rlhf.types import Forest, Segment

CONFIGS = Path(__file__).parents[2] / "configs"
FEW = ("--trainer.max_steps=3", "--trainer.limit_val_batches=2", "--trainer.log_every_n_steps=1")

START = {"adapter": "--model.backbone.adapter", "whole": "--model.backbone.name_or_path"}
"""What a later run is told, by what the SFT run trained."""
STILL = ("--model.optimizer.lr=0", "--data.shuffle_buffer=0")
"""A run that learns nothing ends as it began."""
PAIRS = (
    "--data.train=embedded:dpo_train.jsonl",
    "--data.validation=embedded:dpo_validation.jsonl",
    "--data.batch_size=4",
)


def run(name, folder, *words):
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), f"--trainer.default_root_dir={folder}", *FEW, *words])
    return read_metrics(folder)


def first(rows, name):
    return next(row[name] for row in rows if name in row)


@pytest.fixture(scope="module")
def sft_runs(tmp_path_factory):
    """Folders of short SFT runs, of an ``adapter`` or a ``whole`` model. Do not write into them."""

    @cache
    def make(kind):
        folder = tmp_path_factory.mktemp("runs") / "sft"
        words = ["--trainer.callbacks=null", "--model.optimizer.lr=0.003", "--model.lr_scheduler.warmup_steps=0"]
        run("sft", folder, *words, f"--model.backbone.lora.enabled={kind == 'adapter'}".lower())
        return folder

    return make


@pytest.mark.parametrize("kind", START)
def test_the_folder_holds_what_is_needed(sft_runs, kind):
    folder = sft_runs(kind)
    weights = {"adapter_config.json", "adapter_model.safetensors"} if kind == "adapter" else {"model.safetensors"}
    wanted = {"README.md", "config.yaml", "metrics.csv", "samples.jsonl", "tokenizer.json", "checkpoints", "plots"}
    assert weights | wanted <= {path.name for path in folder.iterdir()}
    assert f"lit-rlhf fit --config dpo.yaml {START[kind]}={folder}" in (folder / "README.md").read_text()
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [0] * 4 + [3] * 4
    assert all(row["prompt"] for row in samples)


def likelihood(folder):
    """Log-likelihood of a text under the model in a folder."""
    tokens = load_tokenizer(folder)("What is 2 plus 1?")["input_ids"]
    model = build_backbone(backbone_config(folder, None, "float32"), reference="none")
    forest = Forest.pack([[Segment(tokens, [False] + [True] * (len(tokens) - 1))]])
    with torch.no_grad():
        return float(model.token_logprobs(forest).logprobs.sum())


@pytest.mark.parametrize("kind", START)
def test_dpo_begins_as_the_sft_model_and_its_reference(sft_runs, tmp_path, kind):
    folder = sft_runs(kind)
    whole = ["--model.backbone.lora.enabled=false"] if kind == "whole" else []
    rows = run("dpo", tmp_path / "dpo", f"{START[kind]}={folder}", *whole, *STILL, "--trainer.callbacks=null")
    for name in ("val/loss", "train/loss"):
        assert first(rows, name) == pytest.approx(math.log(2), abs=2e-6), name
    assert first(rows, "val/kl") == pytest.approx(0, abs=1e-9)
    assert likelihood(tmp_path / "dpo") == pytest.approx(likelihood(folder), rel=1e-6)
    assert likelihood(folder) != pytest.approx(likelihood(Path(resolve("embedded:tiny_llama"))), rel=1e-3)


def test_ppo_begins_as_the_sft_model_and_its_reference(sft_runs, tmp_path):
    folder = sft_runs("adapter")
    words = [f"{START['adapter']}={folder}", *STILL, "--data.batch_size=4", "--data.validation=null"]
    rows = run("ppo", tmp_path / "ppo", *words)
    assert first(rows, "rollout/kl") == pytest.approx(0, abs=1e-5)
    assert likelihood(tmp_path / "ppo") == pytest.approx(likelihood(folder), rel=1e-6)


def test_a_reward_model_begins_on_the_sft_model(sft_runs, tmp_path):
    folder = sft_runs("adapter")
    words = [f"{START['adapter']}={folder}", *STILL, *PAIRS, "--model.backbone.lora.enabled=true"]
    run("reward", tmp_path / "reward", *words)
    assert (tmp_path / "reward" / "reward_model.json").is_file()
    ours, theirs = (load_file(run / "adapter_model.safetensors") for run in (tmp_path / "reward", folder))
    assert len(theirs) > 30
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
