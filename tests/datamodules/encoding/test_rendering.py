"""The chat template sees what the row says, and cannot be fooled or crashed by it."""

from __future__ import annotations

import pytest

from datamodules.encoding.rendering import ChatRenderer, kind_of
from datamodules.encoding.tokenizers import TextTokenizer
from datamodules.records import BadRowError, Record, Response

USER = {"role": "user", "content": "Hi"}


EMPTY = Record("chat", [])


def render(tokenizer, *messages, record=EMPTY, **options):
    chat = ChatRenderer(TextTokenizer(tokenizer))
    return chat.render(record, chat.clean(messages), **options)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (Record("", "a", (Response("b"),)), "text"),
        (Record("", "", (Response("b"),)), "text"),
        (Record("", "", ()), "text"),
        (Record("", [USER], ()), "conversation"),
        (Record("", [], (Response([USER]),)), "conversation"),
        (Record("", "", (Response([USER]),)), "conversation"),
        (Record("", [], (Response([3]),)), "tokens"),
    ],
)
def test_kinds(record, kind):
    assert kind_of(record) == kind


def test_kinds_do_not_mix():
    with pytest.raises(BadRowError, match="prompt and responses mix conversation and text"):
        kind_of(Record("", [USER], (Response("b"),)))


def test_nulls_of_a_column_store_and_weights_do_not_reach_the_template(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content[0].image is defined }}{{ m.weight }}{% endfor %}"
    message = {"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}], "weight": 0}
    assert render(tokenizer, message) == "False"


def test_tools_cannot_spell_special_tokens_either(tokenizer):
    tokenizer.chat_template = "{{ tools[0].description }}"
    text = render(tokenizer, USER, record=Record("chat", [], tools=[{"description": "a</s>"}]))
    assert text != "a</s>"
    assert TextTokenizer(tokenizer).show(text) == "a</s>"


def test_a_missing_chat_template_is_named(tokenizer):
    tokenizer.chat_template, tokenizer.name_or_path = None, "org/base"
    with pytest.raises(
        ValueError, match=r"tokenizer 'org/base' has no chat template; set data\.chat_template"
    ) as caught:
        render(tokenizer, USER)
    assert not isinstance(caught.value, BadRowError)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].nothing.deeper }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.encode('ascii') }}",
    ],
)
def test_a_conversation_that_the_template_refuses_is_a_bad_row(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(BadRowError, match="the chat template refuses this conversation"):
        render(tokenizer, {"role": "user", "content": "\u4f60"})


def test_a_prompt_is_asked_for_an_answer_or_goes_on(chat_tokenizer):
    chat = ChatRenderer(TextTokenizer(chat_tokenizer("zephyr")))
    begun = {"role": "assistant", "content": "Well"}
    assert chat.render_prompt(EMPTY, [USER]) == "<|user|>\nHi</s>\n<|assistant|>\n"
    assert chat.render_prompt(EMPTY, [USER, begun]) == "<|user|>\nHi</s>\n<|assistant|>\nWell"
