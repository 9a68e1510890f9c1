"""Wrong configurations are told in one line with the full path of the key."""

from __future__ import annotations

import pytest

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
    "trainer: {max_steps: many}": "trainer.max_steps: Expected a int. Got value: many",
    "qwertyuiop: 1": "qwertyuiop: unknown key",
    "model: {class_path: lit_rlhf.DPPModule}": (
        "class_path 'lit_rlhf.DPPModule': module 'lit_rlhf' has no attribute 'DPPModule'"
    ),
}
WORDS = {
    "--model.betta=3": "model.betta: unknown key; did you mean 'beta'?",
    "--model.backbone.lora.rr=3": "model.backbone.lora.rr: unknown key; did you mean 'r'?",
    "--data.batchsize=3": "data.batchsize: unknown key; did you mean 'batch_size'?",
    "--model.reference.kache=true": "model.reference.kache: unknown key; did you mean 'cache'?",
    "--trainer.max_stepps=3": "trainer.max_stepps: unknown key; did you mean 'max_steps'?",
}


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
