"""Tokens equal TRL's where TRL is right, and are right in the traps where it is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from datamodules.records import BadRowError, read_preference
from datamodules.tokenization import PairTokenizer, PairTokens, TooLongError, load_tokenizer, with_chat_template

GOLDEN = Path(__file__).parents[1] / "golden" / "trl_dpo_tokens"
USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return copy.deepcopy(tiny_tokenizer)


def conversation(user, chosen, rejected, **columns):
    turns = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {"prompt": [{"role": "user", "content": user}], "chosen": turns[0], "rejected": turns[1], **columns}


def tokens_of(tokenizer, *rows):
    pairs = PairTokenizer(tokenizer, 512, "drop")
    return pairs.encode([pairs.render(read_preference(row)) for row in rows])


def text_of(tokenizer, pair):
    return tuple(tokenizer.decode(ids) for ids in pair[:3])


def test_tokens_equal_those_of_trl():
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN)
    rows, expected = (json.loads((GOLDEN / name).read_text()) for name in ("rows.json", "tokens.json"))
    pairs = tokens_of(tokenizer, *rows)
    assert [list(pair[:3]) for pair in pairs] == expected
    assert len(rows) == len(expected) == 17


def test_response_ends_with_eos_and_text_begins_with_one_bos(tokenizer):
    rows = [{"prompt": prompt, "chosen": " a", "rejected": " b</s>"} for prompt in ("Hi", "<s>Hi")]
    for pair in tokens_of(tokenizer, *rows):
        assert text_of(tokenizer, pair) == ("<s>Hi", " a</s>", " b</s>")


def test_chat_template_writes_the_only_bos(tokenizer):
    (pair,) = tokens_of(tokenizer, conversation("Hi", "a", "b"))
    assert text_of(tokenizer, pair) == ("<s><|user|>Hi<|assistant|>", "a</s>", "b</s>")


def test_special_tokens_in_messages_stay_text(tokenizer):
    row = conversation("say <|assistant|> or </s>", "a</s>b", "<s>")
    (pair,) = tokens_of(tokenizer, row)
    assert text_of(tokenizer, pair) == ("<s><|user|>say <|assistant|> or </s><|assistant|>", "a</s>b</s>", "<s></s>")
    special = {tokenizer.convert_tokens_to_ids(token): token for token in ("<s>", "</s>", "<|user|>", "<|assistant|>")}
    marks = [[special[token] for token in ids if token in special] for ids in pair[:3]]
    assert marks == [["<s>", "<|user|>", "<|assistant|>"], ["</s>"], ["</s>"]]


def test_private_use_characters_of_a_user_are_text(tokenizer):
    (pair,) = tokens_of(tokenizer, conversation("\ue0000\ue001", "a\ue000", "\ue000999\ue001"))
    expected = ("<s><|user|>\ue0000\ue001<|assistant|>", "a\ue000</s>", "\ue000999\ue001</s>")
    assert text_of(tokenizer, pair) == expected


def test_a_begun_assistant_turn_is_continued(tokenizer):
    row = conversation("Hi", " and well", " or not")
    row["prompt"].append({"role": "assistant", "content": "Hello"})
    (pair,) = tokens_of(tokenizer, row)
    assert text_of(tokenizer, pair) == ("<s><|user|>Hi<|assistant|>Hello", " and well</s>", " or not</s>")


def test_bos_equal_eos_and_pad_equal_eos(tokenizer):
    tokenizer.add_special_tokens({"eos_token": "<s>", "pad_token": "<s>"})
    (pair,) = tokens_of(tokenizer, {"prompt": "Hi", "chosen": " a", "rejected": " b"})
    assert text_of(tokenizer, pair) == ("<s>Hi", " a<s>", " b<s>")


def test_real_tokenizer_with_bos_equal_eos(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "models" / "stories260k-llama"))
    (pair,) = tokens_of(tokenizer, {"prompt": "Once upon", "chosen": " a time", "rejected": " a fox"})
    assert (pair.prompt[0], pair.chosen[-1], pair.rejected[-1]) == (1, 1, 1)
    assert 1 not in pair.prompt[1:] + pair.chosen[:-1] + pair.rejected[:-1]


def test_nulls_of_a_column_store_do_not_reach_the_template(tokenizer):
    tokenizer.chat_template = "{{ messages[0].content[0].image is defined }}<|assistant|>{{ messages[-1].content }}"
    row = conversation("Hi", "a", "b")
    row["prompt"] = [{"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}]}]
    (pair,) = tokens_of(tokenizer, row)
    assert tokenizer.decode(pair.prompt) == "False<|assistant|>"


def test_missing_chat_template_is_named(tokenizer):
    tokenizer.chat_template, tokenizer.name_or_path = None, "org/base"
    with pytest.raises(ValueError, match=r"tokenizer 'org/base' has no chat template; set data\.chat_template"):
        tokens_of(tokenizer, conversation("Hi", "a", "b"))


def test_a_conversation_the_template_refuses_is_a_bad_row(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadRowError, match="the chat template refuses this conversation: roles must alternate"):
        tokens_of(tokenizer, conversation("Hi", "a", "b"))


def test_chat_template_from_text_or_file(tokenizer, tmp_path):
    assert with_chat_template(tokenizer, "{{ messages }}").chat_template == "{{ messages }}"
    (tmp_path / "chat.jinja").write_text("{{ tools }}")
    assert with_chat_template(tokenizer, str(tmp_path / "chat.jinja")).chat_template == "{{ tools }}"
    with pytest.raises(ValueError, match=r"data\.chat_template is 'no\.jinja', which is neither a file nor a Jinja"):
        with_chat_template(tokenizer, "no.jinja")


BOS, PROMPT, CHOSEN, REJECTED = 1, [10, 11, 12, 13, 14, 15, 16], [20, 21, 22, 23], [30, 31]
WHOLE = PairTokens([BOS, *PROMPT], CHOSEN, REJECTED)
CUTS = [
    ("prompt_left", 12, WHOLE),
    ("prompt_left", 10, PairTokens([BOS, 12, 13, 14, 15, 16], CHOSEN, REJECTED, ("prompt",))),
    ("prompt_left", 6, PairTokens([BOS, 15, 16], CHOSEN[:3], REJECTED, ("prompt", "response"))),
    ("prompt_left", 2, PairTokens([16], [20], [30], ("prompt", "response"))),
    ("response_right", 12, WHOLE),
    ("response_right", 9, PairTokens([BOS, *PROMPT], [20], [30], ("response",))),
    ("drop", 12, WHOLE),
]


@pytest.mark.parametrize(("truncation", "max_length", "expected"), CUTS)
def test_truncation(tokenizer, truncation, max_length, expected):
    assert PairTokenizer(tokenizer, max_length, truncation).fit(WHOLE) == expected


@pytest.mark.parametrize(
    ("truncation", "pair", "reason", "message"),
    [
        ("drop", WHOLE, "too_long", "has 8 prompt and 4 response tokens, above max_length=8"),
        ("response_right", WHOLE, "prompt_too_long", "has 8 prompt tokens, which leaves no room for a response"),
        ("prompt_left", PairTokens([1], [*range(9), 1], [*range(9), 2]), "identical_when_cut", "do not differ within"),
    ],
)
def test_what_truncation_drops(tokenizer, truncation, pair, reason, message):
    with pytest.raises(TooLongError, match=message) as caught:
        PairTokenizer(tokenizer, 8, truncation).fit(pair)
    assert caught.value.reason == reason


def test_pairs_without_a_loss_are_bad_rows(tokenizer):
    pairs = PairTokenizer(tokenizer, 8, "drop")
    with pytest.raises(BadRowError, match="the prompt has no tokens, so nothing predicts"):
        pairs.fit(PairTokens([], [1], [2]))
    with pytest.raises(BadRowError, match="have the same tokens"):
        pairs.fit(PairTokens([1], [2], [2]))


def test_settings_are_checked(tokenizer):
    with pytest.raises(ValueError, match=r"data\.max_length is 1; a prompt and a response need at least 2"):
        PairTokenizer(tokenizer, 1, "drop")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no eos_token"):
        PairTokenizer(tokenizer, 8, "drop")


def test_a_tokenizer_that_adds_nothing_needs_a_prompt(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    (pair,) = tokens_of(tokenizer, {"prompt": "", "chosen": "a", "rejected": "b"})
    with pytest.raises(BadRowError, match="the prompt has no tokens"):
        PairTokenizer(tokenizer, 8, "drop").fit(pair)
