"""The value head: how it prints, starts and stays in float32, and whose hidden states it reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
)

from lit_rlhf.models.heads.value_head import ValueHead, hidden_size

CONFIG = LlamaConfig(hidden_size=4096)


def test_it_prints_as_it_always_did():
    assert str(ValueHead(CONFIG)) == (
        "ValueHead(\n"
        "  (dropout): Dropout(p=0.1, inplace=False)\n"
        "  (summary): Linear(in_features=4096, out_features=1, bias=True)\n"
        "  (flatten): Flatten(start_dim=1, end_dim=-1)\n"
        ")"
    )
    assert isinstance(ValueHead(CONFIG, summary_dropout_prob=0).dropout, nn.Identity)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (CONFIG, 4096),
        (GPT2Config(n_embd=24), 24),
        (OPTConfig(hidden_size=32, word_embed_proj_dim=16), 16),
        (Gemma3Config(text_config={"hidden_size": 48}), 48),
        (EncoderDecoderConfig(encoder=BertConfig().to_dict(), decoder=BertConfig(hidden_size=96).to_dict()), 96),
    ],
    ids=["llama", "gpt2", "opt", "gemma3", "encoder-decoder"],
)
def test_hidden_sizes(config, size):
    assert hidden_size(config) == size
    assert ValueHead(config).summary.in_features == size


def test_a_config_without_hidden_size_is_refused():
    with pytest.raises(ValueError, match="names no hidden_size"):
        ValueHead(PretrainedConfig())


def test_how_it_starts():
    torch.manual_seed(0)
    expected = nn.Linear(4096, 1)
    torch.manual_seed(0)
    plain = ValueHead(CONFIG).summary
    assert torch.equal(plain.weight, expected.weight), "as torch makes it"
    assert torch.equal(plain.bias, expected.bias)
    wide = ValueHead(CONFIG, v_head_init_strategy="normal").summary
    narrow = ValueHead(CONFIG, v_head_init_strategy="normal", v_head_initializer_range=0.01).summary
    assert wide.weight.std().item() == pytest.approx(0.2, rel=0.05)
    assert narrow.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert wide.bias.item() == 0
    with pytest.raises(ValueError, match="v_head_init_strategy is 'uniform'; there are None, 'normal'"):
        ValueHead(CONFIG, v_head_init_strategy="uniform")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_stays_in_float32(dtype):
    head = ValueHead(CONFIG)
    before = head.summary.weight.detach().clone()
    head.to(dtype)
    assert head.summary.weight.dtype == head.summary.bias.dtype == torch.float32
    assert torch.equal(head.summary.weight, before), "and is not rounded on the way"
    assert head.to("meta").summary.weight.is_meta
    torch.set_default_dtype(dtype)
    try:
        assert ValueHead(CONFIG).summary.weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_it_computes_in_float32_under_autocast():
    head = ValueHead(CONFIG).eval()
    states = torch.randn(2, 3, 4096).bfloat16()
    expected = states.float() @ head.summary.weight.T + head.summary.bias
    with torch.autocast("cpu", torch.bfloat16):
        values = head(states)
    assert (values.dtype, values.shape) == (torch.float32, (2, 3, 1))
    torch.testing.assert_close(values, expected)


def test_dropout_is_for_training():
    head, states = ValueHead(CONFIG), torch.ones(1, 4096)
    assert not torch.equal(head(states), head(states))
    head.eval()
    assert torch.equal(head(states), head(states))
