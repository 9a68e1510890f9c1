"""The path from the command line: reward models, DPO and PPO go on from the folder of an SFT run."""

from __future__ import annotations

import json
import math
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


@pytest.fixture(scope="module", params=["adapter", "whole"])
def sft_run(request, tmp_path_factory):
    """The folder of a short SFT run, and what another run needs to be told to go on from it."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    is_whole = request.param == "whole"
    words = ["--trainer.callbacks=null", "--model.optimizer.lr=0.003", "--model.lr_scheduler.warmup_steps=0"]
    run("sft", folder, *words, f"--model.backbone.lora.enabled={not is_whole}".lower())
    return folder, f"--model.backbone.{'name_or_path' if is_whole else 'adapter'}={folder}"


def test_the_folder_holds_what_is_needed(sft_run):
    folder, start = sft_run
    weights = {"adapter_config.json", "adapter_model.safetensors"} if "adapter" in start else {"model.safetensors"}
    wanted = {"README.md", "config.yaml", "metrics.csv", "samples.jsonl", "tokenizer.json", "checkpoints", "plots"}
    assert weights | wanted <= {path.name for path in folder.iterdir()}
    assert f"lit-rlhf fit --config dpo.yaml {start}" in (folder / "README.md").read_text()
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


def test_dpo_begins_as_the_sft_model_and_its_reference(sft_run, tmp_path):
    folder, start = sft_run
    rows = run("dpo", tmp_path / "dpo", start, *STILL, "--trainer.callbacks=null")
    assert first(rows, "val/loss") == first(rows, "train/loss") == pytest.approx(math.log(2), abs=1e-6)
    assert first(rows, "val/kl") == pytest.approx(0, abs=1e-9)
    assert likelihood(tmp_path / "dpo") == pytest.approx(likelihood(folder), rel=1e-6)
    assert likelihood(folder) != pytest.approx(likelihood(Path(resolve("embedded:tiny_llama"))), rel=1e-3)


def test_ppo_begins_as_the_sft_model_and_its_reference(sft_run, tmp_path):
    folder, start = sft_run
    rows = run("ppo", tmp_path / "ppo", start, *STILL, "--data.batch_size=4", "--data.validation=null")
    assert first(rows, "rollout/kl") == pytest.approx(0, abs=1e-5)
    assert likelihood(tmp_path / "ppo") == pytest.approx(likelihood(folder), rel=1e-6)


def test_a_reward_model_begins_on_the_sft_model(sft_run, tmp_path):
    folder, start = sft_run
    is_adapter = "adapter" in start
    words = [f"--model.backbone.lora.enabled={is_adapter}".lower()]
    run("reward", tmp_path / "reward", start, *STILL, *PAIRS, *words)
    assert (tmp_path / "reward" / "reward_model.json").is_file()
    file = "adapter_model.safetensors" if is_adapter else "model.safetensors"
    ours, theirs = load_file(tmp_path / "reward" / file), load_file(folder / file)
    layers = [name for name in theirs if ".layers." in name]
    assert len(layers) > 30
    assert all(torch.equal(ours[name], theirs[name]) for name in layers)
