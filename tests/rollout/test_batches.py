"""Prompts with and without texts beside them."""

from __future__ import annotations

import pytest

from lit_rlhf.rollout.batches import prompts_alone, prompts_of, texts_of
from lit_rlhf.types import InstructionBatch, PromptAndTextBatch, PromptBatch

PROMPTS, TEXTS = PromptBatch((), {}), InstructionBatch((), {})
BOTH = PromptAndTextBatch(PROMPTS, TEXTS)


def test_prompts_are_found_either_way():
    assert prompts_of(BOTH) is prompts_of(PROMPTS) is prompts_alone(PROMPTS) is PROMPTS


def test_an_algorithm_without_a_use_for_texts_refuses_them():
    with pytest.raises(ValueError, match=r"only PPOModule mixes in"):
        prompts_alone(BOTH)


def test_texts_need_a_weight_and_a_weight_needs_texts():
    assert texts_of(BOTH, 0.1) is TEXTS
    assert texts_of(PROMPTS, 0.0) is None
    with pytest.warns(UserWarning, match="ptx_coef is 0"):
        assert texts_of(BOTH, 0.0) is None
    with pytest.raises(ValueError, match=r"ptx_coef is 0\.1, but the data have no texts"):
        texts_of(PROMPTS, 0.1)
