"""Configurations to runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import LightningModule

from lit_rlhf.commands import estimate_config
from lit_rlhf.commands.estimate_config import Said, read
from lit_rlhf.estimating.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"


def run_of(name: str, *words: str, said: Said | None = None) -> Run:
    return read(["--config", str(CONFIGS / name), *words], said or Said(prompt_tokens=10, response_tokens=20))[0]


def test_the_settings_of_ppo_arrive():
    run = run_of("ppo.yaml", "--model.updates.num_epochs", "3", "--trainer.devices", "2", "--trainer.strategy", "fsdp2")
    assert (run.algorithm, run.critic, run.reference, run.num_reward_adapters) == ("ppo", "adapter", "base", 1)
    assert run.sampling is not None
    assert (run.sampling.num_epochs, run.sampling.max_new_tokens, run.sampling.max_rows) == (3, 48, 64)
    assert (run.batch_size, run.num_ranks, run.is_sharded, run.device) == (64, 2, True, "cpu")
    assert run.token_budget == 8192


def test_lengths_and_rows_are_those_of_the_data():
    run, _ = read(["--config", str(CONFIGS / "dpo.yaml")], Said())
    assert run.num_rows == 2000
    assert 10 < run.texts.prompt < 30
    assert run.texts.per_prompt == 2
    conversations, _ = read(["--config", str(CONFIGS / "sft.yaml")], Said())
    assert conversations.num_rows == 800


def test_data_that_are_not_here_are_assumed_and_said(tmp_path: Path):
    run, assumed = read(["--config", str(CONFIGS / "dpo.yaml"), "--data.train", str(tmp_path / "no.jsonl")], Said())
    assert (run.texts.prompt, run.texts.response, run.num_rows) == (512, 512, None)
    assert any("--prompt_tokens" in line for line in assumed)
    assert any("--rows" in line for line in assumed)


@pytest.mark.parametrize(
    ("words", "reference"),
    [
        ([], "base"),
        (["--model.backbone.lora.enabled", "false"], "model"),
        (["--model.reference.sync_steps", "5"], "adapter"),
        (["--model.backbone.lora.init", "pissa"], "adapter"),
        (["--model.losses", "[{function: lit_rlhf.losses.simpo_loss}]"], "none"),
    ],
)
def test_references(words: list[str], reference: str):
    assert run_of("dpo.yaml", *words).reference == reference


def test_optimizers_keep_what_they_keep():
    assert (run_of("dpo.yaml").moments, run_of("dpo.yaml").moment_bytes) == (2, None)
    eight = run_of("dpo.yaml", "--model.optimizer", "bitsandbytes.optim.AdamW8bit")
    assert (eight.moments, eight.moment_bytes) == (2, 1)


def test_accumulated_batches_are_one_step():
    assert run_of("dpo.yaml", "--trainer.accumulate_grad_batches", "4").batch_size == 64


def test_a_module_of_another_package_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate_config, "read_run", lambda words: (LightningModule(), None, None))
    with pytest.raises(ValueError, match="LightningModule, whose memory is not known; known are SFTModule"):
        read([], Said())
