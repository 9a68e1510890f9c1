"""Sizes and times in words, and where lines of advice stand."""

from __future__ import annotations

import pytest

from lit_rlhf.commands.estimate_screen import duration, gigabytes, show
from lit_rlhf.estimating.findings import findings
from lit_rlhf.estimating.gpus import Device
from lit_rlhf.estimating.run import Run, Texts
from lit_rlhf.models.options import BackboneConfig


def test_sizes_and_times_in_words():
    assert [gigabytes(size) for size in (512, 2_500_000, 12e9)] == ["0.5 kB", "2.5 MB", "12.00 GB"]
    assert [duration(seconds) for seconds in (0.25, 150, 5400, 180_000)] == ["0.25 s", "2.5 min", "1.5 h", "2.1 d"]


def test_advice_stands_under_its_device_and_says_where_nothing_helps(capsys: pytest.CaptureFixture[str]):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=100)
    run = Run("sft", BackboneConfig("model", dtype="float32"), config, Texts(32, 96), 4096, 16, device="cpu")
    show(findings(run, [Device("tiny", 1e-6, 1, 1)]))
    said = capsys.readouterr().out
    assert "to fit tiny, append in this order:" in said
    assert "--data.token_budget" in said
    assert "it does not fit even so" in said
