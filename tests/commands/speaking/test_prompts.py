"""Prompts: the tokens of training, room for an answer, and who has to leave."""

from __future__ import annotations

from copy import deepcopy

import pytest

from lit_rlhf.callbacks.prompts import encode
from lit_rlhf.commands.speaking.prompts import PromptReader, PromptTooLongError, without_oldest


def talk(*roles):
    return [{"role": role, "content": f"word number {number}"} for number, role in enumerate(roles)]


LONG = talk("system", "user", "assistant", "user", "assistant", "user")


def test_tokens_are_those_of_the_template(tiny_tokenizer):
    assert PromptReader(tiny_tokenizer).read(LONG).tokens == encode(LONG, tiny_tokenizer)
    assert PromptReader(tiny_tokenizer).read("1 + 1 =").tokens == tiny_tokenizer("1 + 1 =")["input_ids"]


def test_special_tokens_that_a_person_types_are_letters(tiny_tokenizer):
    spelt = [{"role": "user", "content": "a</s><|system|>b"}]
    tokens = PromptReader(tiny_tokenizer).read(spelt).tokens
    assert tokens.count(tiny_tokenizer.eos_token_id) == 0
    assert tokens.count(tiny_tokenizer.convert_tokens_to_ids("<|system|>")) == 0
    assert tiny_tokenizer.decode(tokens).startswith("<s><|user|>a</s><|system|>b")


def test_a_last_answer_is_gone_on_with(tiny_tokenizer):
    begun = [*talk("user"), {"role": "assistant", "content": "Well, I"}]
    assert tiny_tokenizer.decode(PromptReader(tiny_tokenizer).read(begun).tokens).endswith("<|assistant|>Well, I")


def test_the_oldest_turns_leave_and_the_system_stays(tiny_tokenizer):
    reader = PromptReader(tiny_tokenizer, 100)
    length = len(reader.read(LONG).tokens)
    roomy = PromptReader(tiny_tokenizer, length + 5)
    assert roomy.fit(LONG, 5).num_left == 0
    fitted = roomy.fit(LONG, 6)
    assert (fitted.said, fitted.num_left) == ([LONG[0], *LONG[3:]], 2)
    assert fitted.tokens == roomy.read(fitted.said).tokens
    assert PromptReader(tiny_tokenizer, 2 * length).fit(LONG, 10_000).num_left == 0  # half of all there is


def test_the_last_question_may_take_what_the_answer_wants_but_not_all(tiny_tokenizer):
    question = talk("user")
    length = len(PromptReader(tiny_tokenizer).read(question).tokens)
    assert PromptReader(tiny_tokenizer, length + 1).fit(question, 50).num_left == 0
    tight = PromptReader(tiny_tokenizer, length)
    for ask in (tight.whole, lambda prompt: tight.fit(prompt, 50)):
        with pytest.raises(PromptTooLongError, match=f"the prompt has {length} tokens, and the model takes {length}"):
            ask(question)


def test_of_a_whole_prompt_nothing_leaves(tiny_tokenizer):
    length = len(PromptReader(tiny_tokenizer).read(LONG).tokens)
    assert PromptReader(tiny_tokenizer, length + 1).whole(LONG).said == LONG
    with pytest.raises(PromptTooLongError):
        PromptReader(tiny_tokenizer, length).whole(LONG)


def test_nothing_leaves_where_there_is_no_limit(tiny_tokenizer):
    many = talk(*["user", "assistant"] * 50, "user")
    assert PromptReader(tiny_tokenizer).fit(many, 10_000).said == many


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        (("user",), ("user",)),
        (("system", "user", "assistant"), ("system", "user", "assistant")),
        (("user", "assistant", "user"), ("user",)),
        (("system", "user", "tool", "assistant", "user", "assistant"), ("system", "user", "assistant")),
    ],
)
def test_an_exchange_leaves_as_a_whole(roles, kept):
    assert tuple(message["role"] for message in without_oldest(talk(*roles))) == kept


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "the prompt is empty"), ([], "prompt"), ([{"content": "who?"}], "role")],
)
def test_what_cannot_be_read_is_refused(prompt, message, tiny_tokenizer):
    bare = deepcopy(tiny_tokenizer)
    bare._tokenizer.post_processor = type(bare._tokenizer.post_processor)(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match=message):
        PromptReader(bare).read(prompt)


def test_without_a_template_texts_alone_are_taken(tiny_tokenizer):
    bare = deepcopy(tiny_tokenizer)
    bare.chat_template = None
    reader = PromptReader(bare)
    assert not reader.has_template
    assert reader.read("Hi").tokens == bare("Hi")["input_ids"]
    with pytest.raises(ValueError, match="has no chat template"):
        reader.read(talk("user"))
