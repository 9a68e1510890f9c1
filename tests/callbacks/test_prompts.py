"""Prompts from files, to tokens and back to text."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

from lit_rlhf.callbacks.prompts import encode, read_prompts, readable


def test_a_file_holds_texts_and_conversations(tmp_path):
    prompts = ["What?", [{"role": "user", "content": "Hi"}]]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n\n".join(json.dumps({"prompt": prompt, "id": 1}) for prompt in prompts))
    assert read_prompts(file) == prompts


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"none\.jsonl holds no prompts"):
        read_prompts(tmp_path / "none.jsonl")


def test_messages_need_a_template(tiny_tokenizer):
    plain = deepcopy(tiny_tokenizer)
    plain.chat_template = None
    assert encode("Hi", plain) == encode("Hi", tiny_tokenizer, is_raw=True)
    with pytest.raises(ValueError, match="has no chat template"):
        encode([{"role": "user", "content": "Hi"}], plain)


def test_a_text_is_a_users_message_where_there_is_a_template(tiny_tokenizer):
    asked = encode("Hi", tiny_tokenizer)
    assert asked == encode([{"role": "user", "content": "Hi"}], tiny_tokenizer)
    assert tiny_tokenizer.decode(asked) == "<s><|user|>Hi<|assistant|>"
    assert tiny_tokenizer.decode(encode("Hi", tiny_tokenizer, is_raw=True)) == "<s>Hi"


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "broken JSON"), ('{"text": 1}', 'needs an object with a "prompt"'), ("[]", "needs an object")],
)
def test_a_bad_line_has_its_address(line, message, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"prompts.jsonl:2: {message}"):
        read_prompts(file)


def test_a_prompt_is_shown_a_turn_a_line(tiny_tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    text = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert readable(tiny_tokenizer(text, add_special_tokens=False)["input_ids"], tiny_tokenizer) == "Hi\nYes?"
