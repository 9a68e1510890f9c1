"""Rollouts: the one thing they compute."""

import torch

from lit_rlhf.types import Prompt, Rollouts


def test_lengths_count_the_tokens_of_responses_alone():
    prompt = Prompt((1, 2), "a b", (), {}, "rows.jsonl:1", "rows")
    mask = torch.tensor([[True, True, False], [True, False, False]])
    tokens = torch.tensor([[5, 2, 0], [2, 0, 0]])
    finished = torch.tensor([True, True])
    rollouts = Rollouts((prompt, prompt), torch.tensor([0, 0]), tokens, mask, torch.zeros(2, 3), finished)
    assert rollouts.lengths.tolist() == [2, 1]
