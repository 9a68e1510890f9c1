"""The choice of a layout: the probe, and windows that a probe cannot show."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, Llama4TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from lit_rlhf.models.layout import probe_forest, unseen_limit


@pytest.mark.parametrize("num_embeddings", [5, 30, 50_000])
def test_the_probe_stays_within_the_vocabulary(num_embeddings):
    forest = probe_forest(num_embeddings)
    assert (forest.num_tokens, forest.num_sequences) == (24, 3)
    assert int(forest.tokens.max()) < num_embeddings


@pytest.mark.parametrize(
    ("config", "windows", "limit"),
    [
        (LlamaConfig(), {None}, None),
        (GPT2Config(), {None}, None),
        (MistralConfig(sliding_window=4096), {4096}, None),
        (MistralConfig(sliding_window=4096), {None}, 4096),
        (Qwen2Config(sliding_window=4096), {None}, None),  # use_sliding_window is off
        (Qwen2Config(use_sliding_window=True, sliding_window=32), {None, 32}, None),
        (Llama4TextConfig(attention_chunk_size=512), {None}, 512),
    ],
)
def test_limits_that_layers_do_not_pass_on(config, windows, limit):
    assert unseen_limit(config, windows) == limit
