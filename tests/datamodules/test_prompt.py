"""Prompts: ready to be answered, with everything that the row says beside them."""

from __future__ import annotations

import copy

import pytest

from datamodules import PromptDataModule
from lit_rlhf.types import PromptBatch

QUESTION = [{"role": "user", "content": "How many legs?"}]
ROWS = [
    {"prompt": QUESTION, "answer": "eight", "difficulty": 2},
    {"prompt": "The capital of France is", "ground_truth": "Paris"},
    {
        "prompt": QUESTION,
        "chosen": [{"role": "assistant", "content": "8"}],
        "rejected": [{"role": "assistant", "content": "9"}],
    },
    {"messages": [*QUESTION, {"role": "assistant", "content": "eight"}]},
    {"question": "Who?", "answer": "Me."},
]


@pytest.fixture
def make_data(tiny_tokenizer):
    def make(**options):
        defaults = {"train": ROWS, "tokenizer": copy.deepcopy(tiny_tokenizer), "batch_size": 8, "shuffle_buffer": 0}
        return PromptDataModule(**{**defaults, **options})

    return make


def test_prompts_are_ready_for_the_first_token_of_an_answer(make_data, tiny_tokenizer):
    (batch,) = make_data().train_dataloader()
    assert isinstance(batch, PromptBatch)
    texts = [tiny_tokenizer.decode(prompt.tokens) for prompt in batch.prompts]
    asked = "<s><|user|>How many legs?<|assistant|>"
    assert [text.replace(" ", "") for text in texts[:4]] == [
        text.replace(" ", "") for text in (asked, "<s>The capital of France is", asked, asked)
    ]
    assert [prompt.text for prompt in batch.prompts[:2]] == [asked, "The capital of France is"]
    assert [prompt.row for prompt in batch.prompts] == [f"train:{number}" for number in range(1, 6)]
    assert batch.prompts[0].messages == tuple(QUESTION)
    assert batch.prompts[1].messages == ()


def test_the_rest_of_the_row_reaches_the_reward_function(make_data):
    (batch,) = make_data().train_dataloader()
    columns = [prompt.columns for prompt in batch.prompts]
    assert (columns[0]["answer"], columns[0]["difficulty"]) == ("eight", 2)
    assert columns[1]["ground_truth"] == "Paris"
    assert columns[2]["rejected"] == ROWS[2]["rejected"]
    assert columns[4]["answer"] == "Me."


def test_long_prompts_are_cut_from_the_left_or_dropped(make_data):
    (whole,) = make_data().train_dataloader()
    (cut,) = make_data(max_prompt_length=6).train_dataloader()
    assert max(len(prompt.tokens) for prompt in cut.prompts) == 6
    assert cut.prompts[0].tokens[-1] == whole.prompts[0].tokens[-1]
    assert cut.notes["truncated/prompt"] >= 3
    with pytest.warns(UserWarning, match="dropped train:"):
        (dropped,) = make_data(max_prompt_length=6, truncation="drop").train_dataloader()
    assert len(dropped.prompts) == 5 - dropped.notes["dropped/prompt_too_long"]


def test_a_row_without_a_prompt_is_refused(make_data):
    with pytest.raises(ValueError, match=r"^train:1: "):
        list(make_data(train=[{"label": True}]).train_dataloader())
    assert make_data().num_examples(PromptBatch((), {})) == 0
