"""Decoding over a forest: the hidden states of rows that are computed whole."""

import pytest
import torch

from lit_rlhf.rollout.sampling import forest_decoder
from lit_rlhf.rollout.sampling.forest_decoder import ForestDecoder

PROMPTS, OWNERS = ((5, 6, 7, 8, 9, 10), (11,), (12, 13, 14)), (0, 0, 1, 2)
STEPS = torch.tensor([[20, 21, 22, 23], [30, 31, 32, 33], [40, 41, 42, 43]])


@torch.no_grad()
def whole(backbone, row):
    return backbone.base.get_decoder()(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0, -1]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("prefill", [4096, 1])
@torch.no_grad()
def test_states_are_those_of_whole_rows(fused, prefill, sampled_backbone, monkeypatch):
    monkeypatch.setattr(forest_decoder, "PREFILL_TOKENS", prefill)
    backbone = sampled_backbone(fused=fused)
    backbone.prepare()
    decoder = ForestDecoder(backbone, PROMPTS, OWNERS, capacity=3)
    rows = [list(PROMPTS[owner]) for owner in OWNERS]
    for number, tokens in enumerate(STEPS):
        expected = torch.stack([whole(backbone, row) for row in rows])
        torch.testing.assert_close(decoder.states, expected, rtol=0, atol=1e-5)
        if number == 1:
            decoder.keep([1, 3])
            rows = [rows[1], rows[3]]
        decoder.step(tokens[: len(rows)])
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=False)]
    expected = torch.stack([whole(backbone, row) for row in rows])
    torch.testing.assert_close(decoder.states, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("limit", "parts"), [(10, [3]), (9, [2, 1]), (7, [2, 1]), (6, [1, 2]), (1, [1, 1, 1])])
def test_prompts_are_computed_in_parts(limit, parts, sampled_backbone, monkeypatch):
    monkeypatch.setattr(forest_decoder, "PREFILL_TOKENS", limit)
    seen, prefill = [], ForestDecoder._prefill

    def watched(decoder, prompts):
        seen.append(len(prompts))
        return prefill(decoder, prompts)

    monkeypatch.setattr(ForestDecoder, "_prefill", watched)
    backbone = sampled_backbone()
    backbone.prepare()
    ForestDecoder(backbone, PROMPTS, OWNERS, capacity=3)
    assert seen == parts
