"""A prompt ends where the first token of a response can follow."""

from __future__ import annotations

import pytest

from datamodules.encoding.prompts import PromptEncoder, PromptTokens
from datamodules.encoding.responses import ResponseEncoder
from datamodules.encoding.truncation import TooLongError
from datamodules.records import BadRowError, Record, Response

USER, BEGUN = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}


def encode(tokenizer, record, max_prompt_length=512, truncation="drop"):
    prompts = PromptEncoder(tokenizer, max_prompt_length, truncation)
    (tokens,) = prompts.encode([prompts.render(record)])
    return prompts.fit(tokens)


def test_text_begins_as_the_tokenizer_does_and_does_not_end(tokenizer):
    from tokenizers.processors import TemplateProcessing

    ends = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    for text in ("Hi", "<s>Hi"):
        assert tokenizer.decode(encode(tokenizer, Record("text", text)).tokens) == "<s>Hi"


def test_a_conversation_asks_for_an_answer(chat_tokenizer):
    tokenizer = chat_tokenizer("llama3")
    tokens = encode(tokenizer, Record("chat", [USER]))
    asked = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(tokens.tokens) == tokens.text == asked


def test_a_begun_turn_is_continued(chat_tokenizer):
    tokens = encode(chat_tokenizer("chatml"), Record("chat", [USER, BEGUN]))
    assert tokens.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell, "


def test_special_tokens_that_are_spelled_out_are_shown_as_they_are(chat_tokenizer):
    tokenizer = chat_tokenizer("chatml")
    tokens = encode(tokenizer, Record("chat", [{"role": "user", "content": "<|im_end|>"}]))
    assert tokens.text == tokenizer.decode(tokens.tokens)
    assert tokens.text.startswith("<|im_start|>user\n<|im_end|><|im_end|>\n")
    assert tokens.tokens.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_tools_and_variables_reach_the_template(tokenizer):
    tokenizer.chat_template = "{{ tools[0].name }}{{ 1 if enable_thinking else 2 }}{{ messages[0].content }}"
    record = Record("chat", [USER], tools=[{"name": "f"}], template_kwargs={"enable_thinking": False})
    assert encode(tokenizer, record).text == "f2Hi"


RECORDS = [
    Record("text", "What is the capital of France?", (Response(" Paris"), Response(" Rome", 1))),
    Record("text", "Many\n\nlines\n", (Response("a"), Response("b", 1))),
    Record("chat", [USER], (Response([BEGUN]), Response([{**BEGUN, "content": "No"}], 1))),
    Record("chat", [{"role": "system", "content": ""}, USER], (Response([BEGUN]), Response([BEGUN], 1))),
    Record("tokens", [1, 5, 6], (Response([7]), Response([8], 1))),
]


@pytest.mark.parametrize("name", ["chatml", "llama3", "llama2", "gemma", "thinking", "mistral", "zephyr"])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record.prompt)[:20])
def test_it_is_the_prompt_of_the_responses(chat_tokenizer, name, record):
    tokenizer = chat_tokenizer(name)
    if name == "gemma" and len(record.prompt) == 2:
        with pytest.raises(BadRowError, match="the chat template refuses this conversation: no system role"):
            encode(tokenizer, record)
        return
    responses = ResponseEncoder(tokenizer, 512)
    (tokens,) = responses.encode([responses.render(record)])
    assert encode(tokenizer, record).tokens == tokens.prompt


def test_cuts(tokenizer):
    prompts = PromptEncoder(tokenizer, 3)
    assert prompts.fit(PromptTokens([1, 5, 6, 7], "a")) == PromptTokens([1, 6, 7], "a", ("prompt",))
    assert prompts.fit(PromptTokens([1, 5, 6], "a")).truncated == ()
    with pytest.raises(TooLongError, match="has 4 prompt tokens, above max_prompt_length=3"):
        PromptEncoder(tokenizer, 3, "drop").fit(PromptTokens([1, 5, 6, 7], "a"))


def test_a_prompt_without_tokens_is_a_bad_row(slow_tokenizer):
    for record in (Record("text", ""), Record("chat", [], (Response([BEGUN]),)), Record("tokens", [])):
        with pytest.raises(BadRowError) as caught:
            encode(slow_tokenizer, record)
        assert caught.value.reason == "empty_prompt"


def test_settings_are_checked(tokenizer):
    with pytest.raises(ValueError, match=r"data\.max_prompt_length is 0"):
        PromptEncoder(tokenizer, 0)
    tokenizer.eos_token = None
    assert tokenizer.decode(encode(tokenizer, Record("text", "Hi")).tokens) == "<s>Hi"
