"""Wrong configurations are told in one line with the full path of the key."""

from __future__ import annotations

import pytest
from lightning_utilities.core.imports import RequirementCache

from lit_rlhf.cli import main
from lit_rlhf.commands.config_errors import explain

OVERLAYS = {
    "model: {init_args: {betta: 0.3}}": "model.init_args.betta: unknown key; did you mean 'beta'?",
    "model: {init_args: {backbone: {lora: {rr: 3}}}}": (
        "model.init_args.backbone.lora.rr: unknown key; did you mean 'r'?"
    ),
    "model: {init_args: {optimizer: {init_args: {lrr: 1}}}}": (
        "model.init_args.optimizer.init_args.lrr: unknown key; did you mean 'lr'?"
    ),
    "model: {init_args: {backbone: {lroa: {r: 3}}}}": (
        "model.init_args.backbone.lroa.r: unknown key; did you mean 'lora.r'?"
    ),
    "data: {init_args: {batchsize: 3}}": "data.init_args.batchsize: unknown key; did you mean 'batch_size'?",
    "trainer: {max_stepps: 3}": "trainer.max_stepps: unknown key; did you mean 'max_steps'?",
    "trainer: {max_steps: many}": "trainer.max_steps: expected a whole number, not many",
    "qwertyuiop: 1": "qwertyuiop: unknown key",
    "model: {class_path: lit_rlhf.DPOModul}": (
        "class_path 'lit_rlhf.DPOModul': module 'lit_rlhf' has no attribute 'DPOModul'; did you mean 'DPOModule'?"
    ),
}
WORDS = {
    "--model.betta=3": "model.betta: unknown key; did you mean 'beta'?",
    "--model.backbone.lora.rr=3": "model.backbone.lora.rr: unknown key; did you mean 'r'?",
    "--data.batchsize=3": "data.batchsize: unknown key; did you mean 'batch_size'?",
    "--model.reference.kache=true": "model.reference.kache: unknown key; did you mean 'cache'?",
    "--trainer.max_stepps=3": "trainer.max_stepps: unknown key; did you mean 'max_steps'?",
    "--trainer.max_epoch=3": "trainer.max_epoch: unknown key; did you mean 'max_epochs'?",
    "--conf=x.yaml": "conf: unknown key; did you mean 'config'?",
    "--model.beta=x": "model.beta: expected a number or null, not x",
    "--trainer.enable_progress_bar=x": "trainer.enable_progress_bar: expected true or false or null, not x",
    "--trainer.callbacks+=EarlyStoping": "trainer.callbacks: there is no class 'EarlyStoping'; did you mean "
    "'EarlyStopping'?",
    "--model.optimizer=torch.optim.Adamm": "model.optimizer: module 'torch.optim' has no attribute 'Adamm'; "
    "did you mean 'Adam'?",
    "--trainer.precision=b16": "trainer.precision: expected a whole number or transformer-engine, "
    "transformer-engine-float16, 16-true, 16-mixed, bf16-true, bf16-mixed, 32-true, 64-true or 64, 32, 16, bf16 or "
    "null, not b16",
}
MADE = {
    "--trainer.logger=WandbLogger": "WandbLogger': it needs wandb, which is not installed: pip install wandb",
    "--trainer.accelerator=gpu": "trainer.accelerator is gpu, and torch finds none",
    "--trainer.accelerator=gup": "`accelerator='gup'`",
    "--trainer.devices=2x": "trainer: `devices`",
}
"""What is only found out when the parts are made."""


def refused(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["fit", *words])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_in_a_file(overlay, config_file, tmp_path, capsys):
    file = tmp_path / "overlay.yaml"
    file.write_text(overlay)
    assert refused(capsys, "--config", str(config_file), "--config", str(file)) == f"error: {OVERLAYS[overlay]}\n"


@pytest.mark.parametrize("word", WORDS)
def test_on_the_command_line(word, config_file, capsys):
    assert refused(capsys, "--config", str(config_file), word) == f"error: {WORDS[word]}\n"


@pytest.mark.parametrize("word", MADE)
def test_of_what_cannot_be_made(word, config_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", RequirementCache("wandb>=99"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = refused(capsys, "--config", str(config_file), f"--trainer.default_root_dir={tmp_path}", word)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert MADE[word] in said


def test_a_missing_file_and_a_broken_one_are_named(tmp_path, capsys):
    assert f"'{tmp_path / 'nope.yaml'}'" in refused(capsys, "--config", str(tmp_path / "nope.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [1\n")
    assert refused(capsys, "--config", str(broken)).startswith(f"error: broken YAML {broken}: ")


def test_a_value_that_a_class_refuses_is_told_in_its_own_words(config_file, tmp_path, capsys):
    words = ["--config", str(config_file), f"--trainer.default_root_dir={tmp_path}", "--model.backbone.lora.r=0"]
    assert refused(capsys, *words).startswith("error: lora.r is 0; it must be at least 1")


def test_no_configuration_at_all(capsys):
    assert "--config configs/dpo.yaml" in refused(capsys)


def test_a_key_that_resembles_nothing_gets_no_advice():
    assert explain("Option 'xyz' is not accepted", ["beta"], []) == "xyz: unknown key"


def test_any_other_message_becomes_one_line():
    assert explain("something\n  else", [], []) == "something else"


def test_a_part_that_is_missing_is_named():
    assert explain("the following arguments are required: fit.data", [], ["fit", "--config", "x.yaml"]) == (
        "the configuration has no `data`"
    )
