"""Decoding on padded rows: the hidden states of rows that are computed whole."""

import pytest
import torch

from lit_rlhf.rollout.sampling.padded_decoder import PaddedDecoder

PROMPTS, OWNERS = ((5, 6, 7, 8, 9, 10), (11,), (12, 13, 14)), (0, 0, 1, 2)


@torch.no_grad()
def test_states_are_those_of_whole_rows(sampled_backbone):
    backbone = sampled_backbone(attention="sdpa")
    decoder = PaddedDecoder(backbone, PROMPTS, OWNERS)
    rows = [list(PROMPTS[owner]) for owner in OWNERS]
    for tokens in ([20, 21, 22, 23], [30, 31], [40, 41]):
        expected = [
            backbone.base.get_decoder()(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0, -1]
            for row in rows
        ]
        torch.testing.assert_close(decoder.states, torch.stack(expected), rtol=0, atol=1e-5)
        if len(tokens) < len(rows):
            rows = [rows[place] for place in decoder.keep([0, 2])]
        decoder.step(torch.tensor(tokens))
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_rows_go_on_by_several_tokens_and_take_some_back(attention, sampled_backbone):
    """Also with the attention of forests, which leaves rows to transformers."""
    backbone = sampled_backbone(attention=attention)
    backbone.prepare()
    decoder = PaddedDecoder(backbone, PROMPTS[::2], (0, 1))
    decoder.extend(torch.tensor([[20, 21, 22], [30, 31, 32]]))
    assert decoder.forget(2)
    decoder.extend(torch.tensor([[23, 24], [33, 34]]))
    assert decoder.forget(0)
    decoder.step(torch.tensor([25, 35]))
    for prompt, states, new in zip(PROMPTS[::2], decoder.states, ([20, 23, 24, 25], [30, 33, 34, 35]), strict=True):
        row = torch.tensor([[*prompt, *new]])
        expected = backbone.base.get_decoder()(input_ids=row, use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_slid_out_of_a_window_does_not_come_back(sampled_backbone):
    from transformers import MistralConfig, MistralForCausalLM

    from lit_rlhf.models.backbone import Backbone

    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    backbone = Backbone(MistralForCausalLM(config).eval(), attention="sdpa")
    decoder = PaddedDecoder(backbone, [(5, 6, 7, 8, 9, 10)], [0])
    assert not decoder.forget(1)
    assert decoder.forget(0)
    decoder.extend(torch.tensor([[20, 21, 22]]))
    row = torch.tensor([[5, 6, 7, 8, 9, 10, 20, 21, 22]])
    expected = backbone.base.get_decoder()(input_ids=row, use_cache=False).last_hidden_state[:, -1]
    torch.testing.assert_close(decoder.states, expected, rtol=0, atol=1e-5)
