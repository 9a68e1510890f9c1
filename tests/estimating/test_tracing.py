"""Counting what layers keep while they run without numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig

from lit_rlhf.estimating.anatomy import blank_model, decoder_layers
from lit_rlhf.estimating.tracing import Live, trace_layers
from lit_rlhf.types import Forest, Segment
from tests.tiny_pictures import make_seeing

ROW = Forest.pack([[Segment([0] * 64, [False] * 64)]])


def test_memory_is_counted_from_its_making_to_its_end():
    weight = torch.zeros(1000)
    with Live([weight]) as live:
        view = weight.view(10, 100)
        product = view * 2
        assert (live.now, live.peak) == (4000, 4000)
        rest = product[0] + 1
        del product
        assert (live.now, live.peak) == (400, 4400)
        live.mark()
        assert live.peak == 400
        assert len(rest) == 100


def test_layers_cost_the_same_however_many_there_are(llama: LlamaConfig):
    def maker(count: int) -> nn.Module:
        config = LlamaConfig(**{**llama.to_dict(), "num_hidden_layers": count})
        return blank_model(config, torch.float32).requires_grad_(True)

    few, many = (trace_layers(lambda n=n: maker(n), decoder_layers, ROW) for n in (2, 6))
    assert few == many
    assert few is not None
    # At the least its input, the normed copies of it, what attention reads, and the MLP's width four times.
    assert few.kept > 4 * (4 * 128 + 2 * 128 + 2 * 64 + 4 * 352)


@pytest.mark.parametrize("kind", ["mllama", "llama4"])
def test_models_that_look_at_pictures_are_counted_with_all_of_their_layers(kind, tmp_path):
    config = AutoConfig.from_pretrained(make_seeing(kind, tmp_path))
    found = trace_layers(lambda: blank_model(config, torch.float32).requires_grad_(True), decoder_layers, ROW)
    assert found is not None
    # At the least its input, two normed copies of it, queries and what they get, and the MLP's width three times.
    assert found.kept > 4 * (5 * 64 + 3 * 96)


def test_what_depends_on_numbers_is_not_counted(llama: LlamaConfig):
    def make() -> nn.Module:
        model = blank_model(llama, torch.float32)
        model.model.norm.forward = lambda states: states[states > float(states.sum())]
        return model

    assert trace_layers(make, decoder_layers, ROW) is None
