"""Batches count what they hold."""

from __future__ import annotations

import torch

from lit_rlhf.types import (
    Forest,
    InstructionBatch,
    PreferenceBatch,
    PreferencePairs,
    PromptAndTextBatch,
    PromptBatch,
    Segment,
)


def leaf(*tokens, parent=0):
    return Segment(tokens, [True] * len(tokens), parent)


def inner(*tokens, parent=-1):
    return Segment(tokens, [False] * len(tokens), parent)


def test_a_batch_counts_its_pairs():
    forest = Forest.pack([[inner(1), leaf(2), leaf(3)]])
    pairs = PreferencePairs(forest, torch.tensor([0]), torch.tensor([1]), torch.zeros(1), ("a:1",), ("a",))
    assert PreferenceBatch((pairs, pairs), {}).num_pairs == 2
    assert PreferenceBatch((), {}).num_pairs == 0


def test_prompts_and_texts_lie_side_by_side():
    prompts, texts = PromptBatch((), {}), InstructionBatch((), {})
    both = PromptAndTextBatch(prompts, texts)
    assert (both.prompts, both.texts) == (prompts, texts)
