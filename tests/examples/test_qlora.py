"""The example runs on a CPU: 4-bit weights, an adapter that learnt, nothing else trained."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from bitsandbytes.nn import Params4bit
from safetensors.torch import load_file

from lit_rlhf.embedded import resolve

EXAMPLE = Path(__file__).parents[2] / "examples" / "qlora.py"


def test_it_learns_on_four_bits(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = runpy.run_path(str(EXAMPLE))["train"]
    module = train(resolve("embedded:tiny_llama"), resolve("embedded:dpo_train.jsonl"), tmp_path / "run", 3, 1e-3)
    weights = dict(module.model.named_parameters())
    assert sum(isinstance(weight, Params4bit) for weight in weights.values()) == 4 * 7  # layers x linear maps
    assert all("lora" in name for name, weight in weights.items() if weight.requires_grad)
    loss = float(capsys.readouterr().out.split("loss ")[-1].split(";")[0])
    assert 0.2 < loss < 0.6925  # that of the third step; ln 2 = 0.6931 where nothing was learnt
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert saved
    assert all(weight.any() and weight.dtype == torch.float32 for name, weight in saved.items() if "lora_B" in name)
    assert list((tmp_path / "run" / "reference_logprobs").iterdir())
