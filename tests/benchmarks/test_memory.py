"""The page about memory: its arithmetic beside models that are there, its tables beside what the command makes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

PAGE = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("memory.py")


@pytest.fixture(scope="module")
def static(load_script):
    return load_script("static_memory.py")


@pytest.fixture(scope="module")
def probe(load_script):
    return load_script("sides/memory_probe.py")


def test_what_is_computed_for_llama_3_8b_is_what_a_person_computes(static):
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    scales = layer / 64 + 4 * layer / 64 / 256 + 7 * 4 * (16 + 256 + 1)
    others = 2 * (2 * 128_256 * 4096 + (2 * 32 + 1) * 4096) + 4 * 2 * 64  # and the frequencies of the positions, twice
    found = static.computed_bytes("llama3_8b")
    assert found["base"] == 32 * (layer / 2 + scales) + others
    # q 4096 + 4096, k and v 4096 + 1024, o 4096 + 4096, gate and up 4096 + 14336, down 14336 + 4096; 32 layers
    adapter = 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert adapter == 41_943_040
    assert (found["policy"], found["reference"]) == (4 * adapter, 0)
    assert found["critic"] == 4 * (adapter + 4097)
    assert found["gradients"] == found["policy"] + found["critic"]
    assert found["optimizer"] == 2 * found["gradients"] + 4 * (2 * 32 * 7 * 2 + 2)
    assert static.cache_bytes(static.make_config("llama3_8b", "bfloat16"), "bfloat16") == 2 * 32 * 8 * 128 * 2


def test_copies_of_the_base_are_copies_of_the_whole_base(script):
    for quantization in ("nf4", "none"):
        whole = script.computed("small", quantization)["base"]
        assert script._copies("small", quantization) + script.computed("small")["base"] == 4 * whole
    assert "| **four roles on one base** | **7.27** | **5.31** | **7.21** |" in script.static_table({})


@pytest.mark.parametrize(("quantization", "dtype"), [("nf4", "float32"), ("none", "bfloat16")])
def test_an_iteration_holds_what_is_computed_to_the_byte(static, probe, tmp_path, quantization, dtype):
    config = static.make_config("small", dtype)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    sizes = {"batch": 3, "prompt": 6, "response": 5, "token_budget": 64, "search": 8, "cards": []}
    plan = {"device": "cpu", "quantization": quantization, "dtype": dtype, "gradient_checkpointing": True, **sizes}
    module = probe.Probe(str(tmp_path), plan)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    precision = "bf16-mixed" if dtype == "bfloat16" else "32-true"
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, precision=precision, **quiet)
    trainer.fit(module, DataLoader([0]))
    found = module.found
    assert found["roles"] == static.computed_bytes("small", quantization, dtype)
    assert found["cache"] == static.cache_bytes(config, dtype)
    assert list(found["phases"]) == ["rollout", "score", "update"]
    assert all(peak >= 0 for peak in found["phases"].values())
    assert set(found["speed"]) == {"rollout/tokens_per_second", "train/tokens_per_second"}
    assert module.iterations.number == 2


@settings(max_examples=200, deadline=None)
@given(limit=st.integers(0, 5000), most=st.integers(4, 4096))
def test_the_search_finds_the_largest_to_an_eighth(probe, limit, most):
    tried = []

    def fits(number):
        tried.append(number)
        return number <= limit

    found, truth = probe.largest(fits, most), min(limit, most)
    assert found <= truth
    assert max(tried) <= most
    if truth >= 2:
        assert found > 0
        assert truth - found <= max(1, found // 8)
    else:
        assert found == 0


def test_what_runs_out_of_memory_does_not_fit_and_other_errors_are_errors(probe):
    forgotten = []
    module = SimpleNamespace(_forget=lambda: forgotten.append(True))

    def run(number):
        if number > 3:
            raise torch.OutOfMemoryError("planted")
        if number == 0:
            raise ValueError("planted")

    assert [probe.Probe._fits(module, run, number) for number in (3, 4)] == [True, False]
    assert len(forgotten) == 2
    with pytest.raises(ValueError, match="planted"):
        probe.Probe._fits(module, run, 0)


def test_a_card_is_the_gpu_with_a_cap_and_a_larger_one_is_not_measured(probe, monkeypatch):
    caps = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=40e9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", caps.append)
    module = SimpleNamespace(_forget=lambda: None, _fits=lambda run, number: number <= run)
    searches = {"batch": 64, "context": 1000}
    found = probe.Probe._within(module, 10, searches)
    assert caps == [0.25, 1.0]
    assert found == {"batch": 64, "context": 960}
    assert probe.Probe._within(module, 80, searches) == {"batch": None, "context": None}
    assert len(caps) == 2


def test_the_page_holds_what_the_command_makes(script):
    """The tables that need no measurement, and those of what was measured."""
    results = json.loads(script.RESULTS.read_text())
    assert script.rewritten(PAGE, {name: table(results) for name, table in script.TABLES.items()}) == PAGE


def test_a_table_takes_the_place_of_the_one_before(script):
    page = "Before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
    assert script.rewritten(page, {"a": "new \\1"}) == "Before\n<!-- a -->\n\nnew \\1\n\n<!-- /a -->\nafter\n"
    with pytest.raises(ValueError, match="no one place for 'b'"):
        script.rewritten(page, {"b": "new"})


def test_a_measurement_fills_its_line_and_no_other(script):
    roles = dict.fromkeys(script.ROLES, 10**9)
    found = {
        **{"roles": roles, "phases": {"rollout": 2e9, "score": 3e9, "update": 4.56e9}},
        "speed": {"rollout/tokens_per_second": 1234.5, "train/tokens_per_second": 999.0},
        "fits": {str(card): {"batch": card, "context": 1000 * card if card < 80 else None} for card in script.CARDS},
    }
    results = {"cuda/llama3_8b/nf4": {"found": found}}
    lines = script.gpu_table(results).splitlines()
    assert lines[4] == "| `llama3_8b`, NF4 | 6.0 | 2.0 | 3.0 | 4.6 | 1,234 | 999 |"
    assert [line.count("not measured") for line in lines] == [0, 0, 6, 6, 0, 6]
    lines = script.fits_table(results).splitlines()
    assert lines[6].endswith("| 12 | 16 | 24 | 80 |")
    assert lines[7].endswith("| 12,000 | 16,000 | 24,000 | not measured |")
    assert [line.count("not measured") for line in lines] == [0, 0, 4, 4, 4, 4, 0, 1, 4, 4]


def test_what_was_measured_on_a_cpu_is_what_is_computed(script):
    lines = script.check_table(json.loads(script.RESULTS.read_text())).splitlines()[2:]
    for measured, computed in zip(lines[::2], lines[1::2], strict=True):
        assert measured.replace("measured", "computed") == computed
    assert "not measured" in script.check_table({})
