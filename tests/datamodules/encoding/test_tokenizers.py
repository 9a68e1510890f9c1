"""Texts to ids: nothing is added, what is spelled out stays text, and masks hit the right tokens."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.encoding.prompts import PromptEncoder
from datamodules.encoding.responses import ResponseEncoder
from datamodules.encoding.tokenizers import TextTokenizer, load_tokenizer, with_chat_template
from datamodules.encoding.turns import TurnEncoder
from datamodules.records import BadRowError, Record, Response


def test_chat_template_from_text_or_file(tokenizer, tmp_path):
    assert with_chat_template(tokenizer, "{{ messages }}").chat_template == "{{ messages }}"
    (tmp_path / "chat.jinja").write_text("{{ tools }}")
    assert with_chat_template(tokenizer, str(tmp_path / "chat.jinja")).chat_template == "{{ tools }}"
    with pytest.raises(ValueError, match=r"data\.chat_template is 'no\.jinja', which is neither a file nor a Jinja"):
        with_chat_template(tokenizer, "no.jinja")


def test_a_saved_tokenizer_is_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), chat_template="{{ tools }}")
    assert (loaded.chat_template, len(loaded)) == ("{{ tools }}", len(tokenizer))


def test_what_a_tokenizer_puts_before_a_text(tokenizer, slow_tokenizer):
    texts, bare = TextTokenizer(tokenizer), TextTokenizer(slow_tokenizer)
    assert (texts.opening, bare.opening) == ([1], [])
    assert texts.opened([5]) == texts.opened([1, 5]) == [1, 5]
    assert texts.opened([]) == [1]
    assert bare.opened([5]) == [5]
    assert texts.closed("a", [5]) == texts.closed("a</s>", [5, 2]) == [1, 5, 2]


def test_ids_add_nothing_and_ignore_limits(tokenizer):
    encoder = TextTokenizer(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    texts = ["Thank you very much", "", "a fox</s>"]
    ids = encoder.ids(texts)
    assert [tokenizer.decode(row) for row in ids] == texts
    assert ids[1] == []
    assert ids[2][-1] == tokenizer.eos_token_id


TOKENIZERS = {}  # making one takes longer than an example


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a fox", "<|im_end|>", "[INST]", "\ue000", "\ue0001\ue001", " ", "\u4f60", "</s>"])))
def test_what_is_hidden_comes_back_as_letters(chat_tokenizer, slow_tokenizer, pieces):
    text = "".join(pieces)
    for tokenizer in (TOKENIZERS.setdefault("fast", chat_tokenizer("chatml")), slow_tokenizer):
        texts = TextTokenizer(tokenizer)
        hidden = texts.hide(text)
        assert texts.show(hidden) == text
        (ids,) = texts.ids([hidden])
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)


PIECES = st.sampled_from(["fox", " ", "the", "\U0001f98a", "\u4f60", "\n", "</s>", "\ue000"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(*[st.lists(PIECES, max_size=4).map("".join)] * 3)
def test_masks_cover_a_range_and_little_more(
    chat_tokenizer, slow_tokenizer, metaspace_tokenizer, before, wanted, after
):
    text, span = before + wanted + after, (len(before), len(before + wanted))
    for tokenizer in (TOKENIZERS.setdefault("fast", chat_tokenizer("chatml")), slow_tokenizer, metaspace_tokenizer):
        texts = TextTokenizer(tokenizer)
        ((ids, mask),) = texts.masked_ids([text], [[span]])
        assert ids == texts.ids([text])[0]
        assert len(mask) == len(ids)
        inside = "".join("|" if is_wanted else "." for is_wanted in mask).strip(".")
        assert "." not in inside
        chosen = tokenizer.decode([token for token, is_wanted in zip(ids, mask, strict=True) if is_wanted])
        assert wanted.replace(" ", "") in chosen.replace(" ", "")  # SentencePiece adds spaces after special tokens
        assert sum(mask) <= len(texts.ids([wanted])[0]) + 2  # tokens that reach over the ends


def test_special_tokens_in_a_text(chat_tokenizer):
    texts = TextTokenizer(chat_tokenizer("chatml"))
    assert texts.special_end("a<|im_end|>b</s>", 0, 16) == 11
    assert texts.special_end("a<|im_end|>b</s>", 2, 16) == 16
    assert texts.special_end("a<|im_end|>b</s>", 2, 12) is None


def test_ids_of_another_tokenizer_are_refused(tokenizer):
    texts = TextTokenizer(tokenizer)
    assert texts.checked((1, len(tokenizer) - 1)) == [1, len(tokenizer) - 1]
    for wrong in (-1, len(tokenizer)):
        with pytest.raises(BadRowError, match=f"token id {wrong} is not one of the"):
            texts.checked([1, wrong])


def test_a_tokenizer_without_an_end_is_refused_where_one_is_needed(tokenizer):
    tokenizer.eos_token, tokenizer.name_or_path = None, "org/base"
    with pytest.raises(ValueError, match="tokenizer 'org/base' has no eos_token, which ends a response; set"):
        TextTokenizer(tokenizer).require_eos()


@pytest.mark.parametrize(
    "text", ["\ue00099\ue001", "\ue0000\ue001", "a \ue000m1\ue001", "\ue001\ue000", "\ue0001\ue001 b"]
)
def test_marks_of_ours_in_a_text_row_are_letters(tokenizer, text):
    record = Record("", text + " q", (Response(text, 0), Response(text + " c", 1)))
    pairs, turns, prompts = ResponseEncoder(tokenizer, 512), TurnEncoder(tokenizer, 512), PromptEncoder(tokenizer, 512)
    (pair,) = pairs.encode([pairs.render(record)])
    (turn,) = turns.encode([turns.render(record)])
    (prompt,) = prompts.encode([prompts.render(record)])
    assert prompt.text == text + " q"
    assert tokenizer.decode(prompt.tokens) == "<s>" + text + " q"
    assert tokenizer.decode(turn.tokens) == "<s>" + text + " q" + text + "</s>"
    assert tokenizer.decode([*pair.prompt, *pair.responses[1].tokens]) == "<s>" + text + " q" + text + " c</s>"
