"""Small models by their configurations, runs of them, and the memory that a step of them really takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

from lit_rlhf.estimating.run import Run, Sampling, Texts
from lit_rlhf.models.options import BackboneConfig


@pytest.fixture(scope="session")
def llama() -> LlamaConfig:
    """Four layers in which activations outweigh weights."""
    return LlamaConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
        dtype="float32",
    )


@pytest.fixture
def make_run(llama: LlamaConfig) -> Callable[..., Run]:
    """A run of DPO's kind on a CPU; any field may be given, ``backbone`` as a dictionary of changes."""

    def make(*, backbone: dict[str, Any] | None = None, **fields: Any) -> Run:
        given = {"dtype": "float32", **(backbone or {})}
        run = Run("sft", BackboneConfig("model", **given), llama, Texts(32, 96, 2), 10**6, 8, device="cpu")
        return replace(run, **fields)

    return make


@pytest.fixture
def sampling() -> Sampling:
    """Two responses to a prompt, eight at once."""
    return Sampling(2, 96, 8, 65_536, 0, 2, 2)


@pytest.fixture
def peak_of() -> Callable[[Callable[[], Any]], int]:
    """Most bytes that torch's allocator gave out on a CPU while something ran, beside what was there before."""

    def measure(function: Callable[[], Any]) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
            function()
        events = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return peak

    torch.set_num_threads(1)
    return measure
