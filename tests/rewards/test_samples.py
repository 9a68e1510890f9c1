"""Rollouts as rewards read them."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.rewards import samples_of
from lit_rlhf.types import Prompt, Rollouts


def rollouts_of(prompts, responses, finished=None):
    width = max(map(len, responses))
    tokens = torch.tensor([[*one, *[0] * (width - len(one))] for one in responses])
    mask = torch.tensor([[at < len(one) for at in range(width)] for one in responses])
    ended = torch.tensor([True] * len(responses) if finished is None else finished)
    return Rollouts(tuple(prompts), torch.arange(len(responses)), tokens, mask, torch.zeros(tokens.shape), ended)


def prompt_of(tokenizer, text, messages=(), **columns):
    return Prompt(tuple(tokenizer(text)["input_ids"]), text, messages, columns, "train.jsonl:3", "train")


def test_a_sample_holds_text_tokens_and_what_the_row_says(tiny_tokenizer):
    prompt = prompt_of(tiny_tokenizer, "Hello", answer=4)
    response = tiny_tokenizer(" there.", add_special_tokens=False)["input_ids"]
    first, second = samples_of(
        rollouts_of([prompt, prompt], [[*response, tiny_tokenizer.eos_token_id], response[:1]], [True, False]),
        tiny_tokenizer,
    )
    assert (first.prompt, first.response, first.messages) == ("Hello", " there.", ())
    assert (first.columns, first.row, first.finished, second.finished) == ({"answer": 4}, "train.jsonl:3", True, False)
    assert first.response_tokens == [*response, tiny_tokenizer.eos_token_id]
    assert second.response_tokens == response[:1]
    assert first.prompt_tokens == prompt.tokens
    assert " there.".startswith(second.response)


def test_special_tokens_are_left_out_wherever_they_stand(tiny_tokenizer):
    prompt = prompt_of(tiny_tokenizer, "Hello")
    inside = tiny_tokenizer("a<|user|>b</s>", add_special_tokens=False)["input_ids"]
    (sample,) = samples_of(rollouts_of([prompt], [inside]), tiny_tokenizer)
    assert sample.response == "ab"


def test_a_letter_that_is_cut_in_two_does_not_spoil_the_rest(tiny_tokenizer):
    parts = tiny_tokenizer("\u20ac", add_special_tokens=False)["input_ids"]
    assert len(parts) == 3
    prompt = Prompt((1, *parts[:1]), "?", (), {}, "r", "s")
    assert len(samples_of(rollouts_of([prompt], [parts[1:]]), tiny_tokenizer)) == 1
    whole = Prompt((1,), "?", (), {}, "r", "s")
    assert samples_of(rollouts_of([whole], [parts]), tiny_tokenizer)[0].response == "\u20ac"


@pytest.mark.parametrize(("messages", "response"), [((), " was"), (({"role": "user", "content": "x"},), "was")])
def test_a_space_belongs_to_the_response_to_plain_text(messages, response, shared_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models/stories260k-llama")
    whole = tokenizer("Once upon a time there was")["input_ids"]
    text = "Once upon a time there"
    ids = tokenizer(text)["input_ids"]
    prompt = Prompt(tuple(ids), text, messages, {}, "r", "s")
    (sample,) = samples_of(rollouts_of([prompt], [whole[len(ids) :]]), tokenizer)
    assert sample.response == response
