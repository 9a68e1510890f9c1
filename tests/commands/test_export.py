"""Exported folders hold what was learnt, and load without this package."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.cli import main
from lit_rlhf.commands.run_folder import CHECKPOINTS
from lit_rlhf.models.heads.reward_model import load_reward_model
from lit_rlhf.types import Forest, Segment

TOKENS = torch.tensor([[1, 20, 31, 42, 53, 64, 75]])


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def refused(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, words)])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_the_adapter_loads_with_plain_peft_and_changes_the_base(finished_run, tiny_llama, tmp_path, capsys):
    main(["export", str(finished_run), "--out", str(tmp_path / "out")])
    assert f"adapter: {tmp_path / 'out'}" in capsys.readouterr().out
    base = AutoModelForCausalLM.from_pretrained(tiny_llama())
    plain = logits(base)
    ours = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama()), finished_run))
    exported = logits(PeftModel.from_pretrained(base, tmp_path / "out"))
    assert torch.equal(exported, ours)
    assert (exported - plain).abs().max() > 0.01
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template is not None
    assert CHECKPOINTS not in [path.name for path in (tmp_path / "out").iterdir()]
    assert "PeftModel" in (tmp_path / "out" / "README.md").read_text()


def test_merged_equals_unmerged(finished_run, tiny_llama, tmp_path):
    main(["export", str(finished_run), "--out", str(tmp_path / "out"), "--merge"])
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama()), finished_run)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(unmerged), atol=1e-5, rtol=1e-5)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "PeftModel" not in text
    assert str(tiny_llama()) in text


def test_a_run_in_4_bits_is_merged_into_the_full_precision_base(fit, tiny_llama, tmp_path):
    folder = tmp_path / "nf4"
    fit(folder, "--model.backbone.quantization=nf4", "--trainer.max_steps=4")
    main(["export", str(folder), "--out", str(tmp_path / "out"), "--merge"])
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama()), folder)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {str(weight.dtype) for weight in merged.parameters()} == {"torch.float32"}
    torch.testing.assert_close(logits(merged), logits(unmerged), atol=1e-5, rtol=1e-5)


def test_dtype_is_that_of_the_written_weights(finished_run, tmp_path):
    main(["export", str(finished_run), "--out", str(tmp_path / "out"), "--merge", "--dtype", "bfloat16"])
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_a_base_that_has_moved_is_named(finished_run, tiny_llama, tmp_path):
    run, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(finished_run, run)
    shutil.copytree(tiny_llama(), base)
    settings = json.loads((run / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gone")
    (run / "adapter_config.json").write_text(json.dumps(settings))
    main(["export", str(run), "--out", str(tmp_path / "out"), "--merge", "--base", str(base)])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_existing_folder_is_left_alone(finished_run, tmp_path, capsys):
    (tmp_path / "mine").touch()
    assert "exists already" in refused(capsys, finished_run, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_without_adapter_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no run has finished there" in refused(capsys, tmp_path / "empty", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_another_base_is_refused(finished_run, tiny_llama, tmp_path, capsys):
    words = [finished_run, "--out", tmp_path / "out", "--merge", "--base", tiny_llama(hidden_size=32)]
    assert "does not fit" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def score(model):
    tokens = TOKENS[0].tolist()
    with torch.no_grad():
        return model.scores(Forest.pack([[Segment(tokens, [False] * len(tokens))]]))


@pytest.mark.parametrize("objectives", [{}, {"good": 1.0, "short": -0.5}])
def test_a_reward_model_becomes_a_sequence_classifier_with_one_output(objectives, reward_folders, tmp_path, capsys):
    wanted = score(load_reward_model(reward_folders(**objectives)))
    main(["export", str(reward_folders(**objectives)), "--out", str(tmp_path / "out"), "--merge"])
    assert "sequence classifier:" in capsys.readouterr().out
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert classifier.config.num_labels == 1
    assert classifier.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    torch.testing.assert_close(logits(classifier)[0], wanted, rtol=1e-5, atol=1e-5)
    padded = torch.cat([TOKENS, torch.full((1, 3), tokenizer.pad_token_id)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(classifier(padded).logits[0], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score(load_reward_model(tmp_path / "out")), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objectives", [{}, {"good": 1.0, "short": -0.5}])
def test_a_reward_model_is_exported_as_an_adapter_with_its_head(
    objectives, reward_folders, tiny_llama, tmp_path, capsys
):
    wanted = score(load_reward_model(reward_folders(**objectives)))
    main(["export", str(reward_folders(**objectives)), "--out", str(tmp_path / "out")])
    assert "adapter with its score head:" in capsys.readouterr().out
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama(), num_labels=1, pad_token_id=0)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base, tmp_path / "out"))[0], wanted, rtol=1e-5, atol=1e-5
    )
    known = json.loads((tmp_path / "out" / "reward_model.json").read_text())
    assert (known["objectives"], known["mean"], known["std"]) == ({"score": 1.0}, 0.5, 2.0)
    assert "num_labels=1" in (tmp_path / "out" / "README.md").read_text()
