"""Decoding on padded rows: the hidden states of rows that are computed whole."""

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
