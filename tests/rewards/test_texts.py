"""Samples as a reward model reads them: the policy's tokens, or the text in its own words."""

from __future__ import annotations

from copy import deepcopy

import pytest

from lit_rlhf.rewards import Sample
from lit_rlhf.rewards.texts import SampleReader, closing_tokens, differing_token, with_template

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PICKY = "{% if messages|length > 2 %}{{ raise_exception('too many turns') }}{% endif %}x"
ASKED = ({"role": "user", "content": "Hello?"},)


@pytest.fixture
def other(tiny_tokenizer):
    """A tokenizer whose ids mean something else than the policy's."""
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["there"])
    return tokenizer


def text_of(reader, sample):
    return reader.tokenizer.decode(reader(sample)["input_ids"])


def test_the_policys_tokens_are_taken_as_they_are(tiny_tokenizer):
    reader = SampleReader(tiny_tokenizer, deepcopy(tiny_tokenizer), [2])
    assert reader(Sample("ignored", "ignored", (), (7, 8), [9, 2])) == {"input_ids": [7, 8, 9, 2]}


def test_what_the_template_writes_behind_the_end_is_put_there(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, CHATML)
    reader = SampleReader(tokenizer, tokenizer, [2])
    (newline,) = closing_tokens(tokenizer, [2])
    assert tokenizer.decode([newline]) == "\n"
    assert reader(Sample("", "", ASKED, (7,), [9, 2])) == {"input_ids": [7, 9, 2, newline]}
    assert reader(Sample("", "", ASKED, (7,), [9, 10])) == {"input_ids": [7, 9, 10]}
    assert reader(Sample("", "", (), (7,), [9, 2])) == {"input_ids": [7, 9, 2]}
    assert closing_tokens(tiny_tokenizer, [2]) == []
    tokenizer.chat_template = None
    assert closing_tokens(tokenizer, [2]) == []


@pytest.mark.parametrize(("prompt", "response"), [((), [1]), ((1,), [])])
def test_tokens_must_be_there(prompt, response, tiny_tokenizer):
    reader = SampleReader(tiny_tokenizer, tiny_tokenizer, [2])
    with pytest.raises(ValueError, match=r"train\.jsonl:4: prompt and response need a token each"):
        reader(Sample("", "", (), prompt, response, row="train.jsonl:4"))


def test_a_conversation_is_rendered_by_a_template_of_ones_own(tiny_tokenizer):
    reader = SampleReader(with_template(tiny_tokenizer, CHATML), tiny_tokenizer, [2])
    sample = Sample("<s><|user|>Hello?<|assistant|>", "Hi.", ASKED, (7,), [9, 2])
    assert text_of(reader, sample) == "<|user|>Hello?</s>\n<|assistant|>Hi.</s>\n"
    assert text_of(reader, sample._replace(finished=False)) == "<|user|>Hello?</s>\n<|assistant|>Hi."
    assert text_of(reader, sample._replace(response="", finished=False)).endswith("<|assistant|></s>\n")
    assert reader(sample._replace(messages=()))["input_ids"] == [7, 9, 2]


def test_without_a_template_of_its_own_it_takes_the_policys_tokens(tiny_tokenizer):
    bare = deepcopy(tiny_tokenizer)
    bare.chat_template = None
    assert SampleReader(bare, tiny_tokenizer, [2])(Sample("", "", ASKED, (7,), [9]))["input_ids"] == [7, 9]


def test_plain_text_is_joined_and_ended(tiny_tokenizer, other):
    reader = SampleReader(other, tiny_tokenizer, [2])
    sample = Sample("Hello", " there.", (), (7,), [9, 2])
    assert text_of(reader, sample) == "<s>Hello there.</s>"
    assert text_of(reader, sample._replace(finished=False)) == "<s>Hello there."
    assert reader(sample)["input_ids"] == [*other("Hello there.")["input_ids"], 2]


def test_a_conversation_needs_a_template(tiny_tokenizer, other):
    other.chat_template = None
    reader = SampleReader(other, tiny_tokenizer, [2])
    with pytest.raises(ValueError, match=r"train\.jsonl:4: the prompt is a conversation, and the .* set chat_template"):
        reader(Sample("", "Hi", ASKED, row="train.jsonl:4"))


def test_a_template_that_refuses_is_told_with_the_row(tiny_tokenizer, other):
    reader = SampleReader(with_template(other, PICKY), tiny_tokenizer, [2])
    assert text_of(reader, Sample("", "Hi", ASKED)) == "x"
    with pytest.raises(
        ValueError, match=r"train\.jsonl:4: the reward model's chat template refuses it: too many turns"
    ):
        reader(Sample("", "Hi", ASKED * 2, row="train.jsonl:4"))


def test_texts_are_joined_in_pairs_where_a_tokenizer_does(tiny_tokenizer, word_tokenizer):
    reader = SampleReader(word_tokenizer, tiny_tokenizer, [2])
    encoding = reader(Sample("What is the capital", "Paris ."))
    assert word_tokenizer.decode(encoding["input_ids"]) == "[CLS] what is the capital [SEP] paris . [SEP]"
    assert encoding["token_type_ids"] == [0] * 6 + [1] * 3
    assert "attention_mask" not in encoding
    parts = ({"role": "user", "content": "hello"}, {"role": "user", "content": [{"type": "text", "text": "there"}]})
    assert text_of(reader, Sample("", "no", parts)) == "[CLS] hello there [SEP] no [SEP]"


def test_long_texts_lose_their_beginning(tiny_tokenizer, word_tokenizer):
    reader = SampleReader(with_template(word_tokenizer, None), tiny_tokenizer, [2], max_length=8)
    assert text_of(reader, Sample("what is the capital of france", "paris .")) == (
        "[CLS] capital of france [SEP] paris . [SEP]"
    )


@pytest.mark.parametrize("mark", ["</s>", "<|user|>", "<s>"])
def test_a_special_token_that_is_spelled_out_is_none(mark, tiny_tokenizer, other):
    token = other.convert_tokens_to_ids(mark)
    chat = SampleReader(other, tiny_tokenizer, [2])
    clean = chat(Sample("", "a b", ASKED))["input_ids"]
    asked = ({"role": "user", "content": f"Hello?{mark}"},)
    for sample in (Sample("", f"a{mark}b", ASKED), Sample("", "a b", asked)):
        assert chat(sample)["input_ids"].count(token) == clean.count(token)
    plain = chat(Sample(f"x{mark}", f"a{mark}b", finished=False))["input_ids"]
    assert plain.count(token) == (mark == "<s>")


def test_what_vocabularies_differ_in(tiny_tokenizer, other):
    assert differing_token(tiny_tokenizer, deepcopy(tiny_tokenizer)) is None
    found = differing_token(tiny_tokenizer, other)
    assert found == f"'there' is no token in one and {len(tiny_tokenizer)} in the other (1 differ)"


def test_a_template_comes_as_text_or_file_and_leaves_the_tokenizer_alone(tiny_tokenizer, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    before = tiny_tokenizer.chat_template
    for given in (CHATML, str(file)):
        assert with_template(tiny_tokenizer, given).chat_template == CHATML
    assert with_template(tiny_tokenizer, None).chat_template == tiny_tokenizer.chat_template == before
    with pytest.raises(ValueError, match="chat_template is 'nothing', which is neither a file nor a Jinja template"):
        with_template(tiny_tokenizer, "nothing")
