"""Folders as TRL 1.10 writes them give TRL's values, which ``benchmarks/parity/value_head_trl.py`` recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from lit_rlhf import AutoModelForCausalLMWithValueHead

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "trl_value_head.json").read_text())


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("parity/value_head_trl.py")


def test_the_golden_file_names_every_folder(script):
    assert set(GOLDEN) == {f"{family}/{kind}" for family in script.FAMILIES for kind in ("full", "adapter")}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_folder_of_trl_gives_its_values(script, tmp_path, name):
    family, kind = name.split("/")
    base, folder = tmp_path / family / "base", tmp_path / name
    script.build(family).save_pretrained(base)
    options = {"peft_config": LoraConfig(**script.LORA)} if kind == "adapter" else {}
    model = AutoModelForCausalLMWithValueHead.from_pretrained(base, **options)
    script.fill(model)
    inner, tensors = model.pretrained_model, model.state_dict()
    inner.save_pretrained(folder)
    if kind == "adapter":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "values.json").write_text(json.dumps({name: GOLDEN[name]}))
    differences = script.read(AutoModelForCausalLMWithValueHead, tmp_path)
    assert differences[name] < 1e-5
    expected = torch.tensor(GOLDEN[name])
    assert expected.isnan().sum() == 5
    assert expected[~expected.isnan()].std() > 0.05


def test_what_is_written_is_read(script, tmp_path):
    script.write(AutoModelForCausalLMWithValueHead, tmp_path)
    assert max(script.read(AutoModelForCausalLMWithValueHead, tmp_path).values()) < 1e-6
    written = json.loads((tmp_path / "values.json").read_text())
    for name, rows in GOLDEN.items():
        torch.testing.assert_close(torch.tensor(written[name]), torch.tensor(rows), atol=1e-5, rtol=0, equal_nan=True)


def test_another_head_is_seen(script, tmp_path):
    script.write(AutoModelForCausalLMWithValueHead, tmp_path)
    wrong = {name: [[value + 1e-3 for value in row] for row in rows] for name, rows in GOLDEN.items()}
    (tmp_path / "values.json").write_text(json.dumps(wrong))
    assert min(script.read(AutoModelForCausalLMWithValueHead, tmp_path).values()) > 5e-4
