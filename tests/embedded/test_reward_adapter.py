"""The embedded reward model: what is shipped loads on the shipped base and knows right from wrong; how it is made."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_rlhf.embedded import ASSETS, resolve
from lit_rlhf.embedded.reward_adapter import BASE, KEPT, shrink


def test_it_is_of_the_embedded_model_and_small():
    folder = ASSETS / "reward_adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    assert (folder / BASE).resolve() == ASSETS / "tiny_llama"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 700_000
    assert json.loads((folder / "reward_model.json").read_text())["std"] > 0


def test_a_right_friendly_answer_scores_above_a_wrong_rude_one(capsys):
    from lit_rlhf.cli import main

    scores = {}
    for answer in ("Sure! A banana is yellow.", "Duh. Blue."):
        question = ["--prompt", "What colour is a banana?", "--response", answer]
        main(["score", resolve("embedded:reward_adapter"), *question])
        scores[answer] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["score"]
    assert scores["Sure! A banana is yellow."] > scores["Duh. Blue."] + 2.0


def test_a_run_is_made_small(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "small"
    run.mkdir()
    weights = {
        "base_model.model.q.lora_A.weight": torch.randn(2, 3),
        "base_model.model.score.weight": torch.randn(1, 3),
    }
    save_file(weights, run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps({"r": 2, "base_model_name_or_path": "/a/path"}))
    for name in KEPT:
        (run / name).write_text("{}")
    shrink(run, folder)
    small = load_file(folder / "adapter_model.safetensors")
    assert small["base_model.model.q.lora_A.weight"].dtype == torch.bfloat16
    assert torch.equal(small["base_model.model.score.weight"], weights["base_model.model.score.weight"])
    assert json.loads((folder / "adapter_config.json").read_text()) == {"r": 2, "base_model_name_or_path": BASE}
    assert {path.name for path in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", *KEPT}


def test_a_run_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run with an adapter"):
        shrink(tmp_path, tmp_path / "small")
