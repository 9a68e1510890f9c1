"""Tokens of judged responses equal TRL's where TRL is right, and are right in the traps where it is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from datamodules.encoding.responses import ResponseEncoder, ResponseTokens
from datamodules.encoding.tokenizers import load_tokenizer
from datamodules.encoding.truncation import TooLongError
from datamodules.forms import read_row
from datamodules.packing import TokenResponse
from datamodules.records import BadRowError, Record, Response

GOLDEN = Path(__file__).parents[2] / "golden" / "trl_dpo_tokens"
USER = {"role": "user", "content": "Hi"}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def record(prompt, *texts, **more):
    return Record("ranked", prompt, tuple(Response(text, rank) for rank, text in enumerate(texts)), **more)


def chat(*texts, prompt=(USER,)):
    return record(list(prompt), *([assistant(text)] for text in texts))


def encode(tokenizer, *records, trained="response"):
    encoder = ResponseEncoder(tokenizer, 512, "drop", trained)
    return encoder.encode([encoder.render(row) for row in records])


def texts_of(tokenizer, row):
    return tuple(map(tokenizer.decode, (row.prompt, *(response.tokens for response in row.responses))))


def scored_of(tokenizer, row):
    scored = [[token for token, is_scored in zip(*one, strict=True) if is_scored] for one in row.responses]
    return [tokenizer.decode(ids) for ids in scored]


def test_tokens_equal_those_of_trl():
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN)
    rows, expected = (json.loads((GOLDEN / name).read_text()) for name in ("rows.json", "tokens.json"))
    records = [record for row in rows for record in read_row(row)]
    encoded = encode(tokenizer, *records)
    assert [[row.prompt, *(response.tokens for response in row.responses)] for row in encoded] == expected
    assert all(all(response.scored) for row in encoded for response in row.responses)
    assert len(rows) == len(expected) == 17


def test_text_has_one_bos_and_each_response_one_eos(tokenizer):
    from tokenizers.processors import TemplateProcessing

    for single in ("<s> $A", "<s> $A </s>"):
        ends = [("<s>", 1), ("</s>", 2)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ends)
        for row in encode(tokenizer, *(record(prompt, " a", " b</s>", " c") for prompt in ("Hi", "<s>Hi"))):
            assert texts_of(tokenizer, row) == ("<s>Hi", " a</s>", " b</s>", " c</s>")


def test_chat_template_writes_the_only_bos(tokenizer):
    (row,) = encode(tokenizer, chat("a", "b"))
    assert texts_of(tokenizer, row) == ("<s><|user|>Hi<|assistant|>", "a</s>", "b</s>")


def test_special_tokens_in_messages_stay_text(tokenizer):
    user = {"role": "user", "content": "say <|assistant|> or </s>"}
    (row,) = encode(tokenizer, chat("a</s>b", "<s>", prompt=[user]))
    assert texts_of(tokenizer, row) == ("<s><|user|>say <|assistant|> or </s><|assistant|>", "a</s>b</s>", "<s></s>")
    special = {tokenizer.convert_tokens_to_ids(token): token for token in ("<s>", "</s>", "<|user|>", "<|assistant|>")}
    parts = (row.prompt, *(response.tokens for response in row.responses))
    marks = [[special[token] for token in ids if token in special] for ids in parts]
    assert marks == [["<s>", "<|user|>", "<|assistant|>"], ["</s>"], ["</s>"]]


def test_a_begun_assistant_turn_is_continued(tokenizer):
    (row,) = encode(tokenizer, chat(" and well", " or not", prompt=[USER, assistant("Hello")]))
    assert texts_of(tokenizer, row) == ("<s><|user|>Hi<|assistant|>Hello", " and well</s>", " or not</s>")
    call = assistant(None, tool_calls=[{"function": {"name": "f"}}])
    (row,) = encode(tokenizer, record([USER, assistant("Hello")], [assistant(" a")], [call]))
    assert texts_of(tokenizer, row)[2] == "</s>"  # this template writes no calls
    blocks = assistant([{"type": "text", "text": " a"}])
    with pytest.raises(BadRowError, match="an assistant turn that the response cannot go on with"):
        encode(tokenizer, record([USER, assistant("Hello")], [blocks]))


def test_bos_equal_eos_and_pad_equal_eos(tokenizer):
    tokenizer.add_special_tokens({"eos_token": "<s>", "pad_token": "<s>"})
    (row,) = encode(tokenizer, record("Hi", " a", " b"))
    assert texts_of(tokenizer, row) == ("<s>Hi", " a<s>", " b<s>")


TEXT = st.text(st.sampled_from("the fox \n\u4f60\U0001f98a\u00e9."), max_size=8)


@settings(deadline=None)
@given(prompt=TEXT, texts=st.lists(TEXT, min_size=1, max_size=3))
def test_prompt_and_response_are_the_tokens_of_both_together(
    tiny_tokenizer, slow_tokenizer, metaspace_tokenizer, prompt, texts
):
    for tokenizer in (tiny_tokenizer, slow_tokenizer, metaspace_tokenizer):
        (row,) = encode(tokenizer, record(prompt, *texts))
        for text, response in zip(texts, row.responses, strict=True):
            assert row.prompt + response.tokens == [*tokenizer(prompt + text)["input_ids"], tokenizer.eos_token_id]
        alone = tokenizer(prompt)["input_ids"]
        assert row.prompt == alone[: len(row.prompt)]


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3", "gemma", "thinking", "zephyr"])
def test_every_template_asks_then_answers(chat_tokenizer, name):
    tokenizer = chat_tokenizer(name)
    (row,) = encode(tokenizer, chat("yes", "no", "maybe"))
    asked = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(row.prompt) == asked
    for text, response in zip(("yes", "no", "maybe"), row.responses, strict=True):
        whole = tokenizer.apply_chat_template([USER, assistant(text)], tokenize=False)
        assert tokenizer.decode(row.prompt + response.tokens) == whole


def test_a_prompt_that_is_rendered_otherwise_before_an_answer_is_never_scored(chat_tokenizer):
    tokenizer = chat_tokenizer("mistral")
    system = {"role": "system", "content": "Be kind"}
    for trained in ("response", "assistant"):
        (row,) = encode(tokenizer, chat("yes", "no", prompt=[system, USER]), trained=trained)
        assert texts_of(tokenizer, row) == ("<s>[INST] Be kind\n\nHi[/INST]", " yes</s>", " no</s>")
        assert scored_of(tokenizer, row) == [" yes</s>", " no</s>"]


def test_a_template_that_asks_for_thoughts_and_writes_none(chat_tokenizer):
    tokenizer = chat_tokenizer("r1")
    (row,) = encode(tokenizer, chat("yes", "<think>hm</think>no"))
    assert texts_of(tokenizer, row) == ("<s><|User|>Hi<|Assistant|>", "yes</s>", "no</s>")


def test_only_assistant_turns_of_a_response_are_scored(chat_tokenizer):
    tokenizer = chat_tokenizer("chatml")
    answers = [[assistant(text), USER, assistant("so", weight=weight)] for text, weight in (("a", 1), ("b", 0))]
    for trained, expected in (
        ("assistant", ["a<|im_end|>so<|im_end|>", "b<|im_end|>"]),
        (
            "response",
            [f"{x}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n" for x in "ab"],
        ),
    ):
        (row,) = encode(tokenizer, record([USER, assistant("before"), USER], *answers), trained=trained)
        assert scored_of(tokenizer, row) == expected
        assert tokenizer.decode(row.prompt).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")


def test_tokenised_rows_are_taken_as_they_are(tokenizer):
    (row,) = encode(tokenizer, record([1, 5], [6, 2], [6]))
    responses = (TokenResponse([6, 2], [True, True]), TokenResponse([6], [True]))
    assert row == ResponseTokens([1, 5], responses, (0, 1), (0, 1))


def test_a_row_without_a_response_is_refused(tokenizer):
    with pytest.raises(BadRowError, match="the row has no response; give"):
        encode(tokenizer, Record("text", "Hi"))


def tokens(prompt, *responses, ranks=None, kept=None, **more):
    numbers = tuple(range(len(responses)))
    made = tuple(TokenResponse(ids, [True] * len(ids)) for ids in responses)
    return ResponseTokens(prompt, made, kept or numbers, ranks or numbers, **more)


BOS, PROMPT, CHOSEN, REJECTED = 1, [10, 11, 12, 13, 14, 15, 16], [20, 21, 22, 23], [30, 31]
WHOLE = tokens([BOS, *PROMPT], CHOSEN, REJECTED)


@pytest.mark.parametrize(
    ("truncation", "max_length", "expected"),
    [
        ("prompt_left", 12, WHOLE),
        ("prompt_left", 10, tokens([BOS, 12, 13, 14, 15, 16], CHOSEN, REJECTED, truncated=("prompt",))),
        ("prompt_left", 6, tokens([BOS, 15, 16], CHOSEN[:3], REJECTED, truncated=("prompt", "response"))),
        ("prompt_left", 2, tokens([16], [20], [30], truncated=("prompt", "response"))),
        ("response_right", 12, WHOLE),
        ("response_right", 9, tokens([BOS, *PROMPT], [20], [30], truncated=("response",))),
        ("drop", 12, WHOLE),
    ],
)
def test_truncation(tokenizer, truncation, max_length, expected):
    assert ResponseEncoder(tokenizer, max_length, truncation).fit(WHOLE) == expected


def test_of_identical_responses_the_best_is_kept(tokenizer):
    fit = ResponseEncoder(tokenizer, 8, "response_right").fit
    assert fit(tokens([1], [5], [6], [5], ranks=(2, 1, 0))) == tokens(
        [1], [6], [5], ranks=(1, 0), kept=(1, 2), dropped=("identical_responses",)
    )
    alike = [[*range(9), last] for last in (1, 2)]
    cut = fit(tokens([1], *alike, [7]))
    assert (cut.kept, cut.dropped) == ((0, 2), ("identical_when_cut",))
    with pytest.raises(TooLongError, match="do not differ within max_length=8") as caught:
        fit(tokens([1], *alike))
    assert caught.value.reason == "identical_when_cut"
    for ranks in ((0, 1), (0, 0)):
        with pytest.raises(BadRowError, match="have the same tokens") as caught:
            fit(tokens([1], [5], [5], ranks=ranks))
        assert caught.value.reason == "identical_responses"


def test_responses_that_were_judged_alone_may_be_identical(tokenizer):
    labelled = Record("thumbs", "Hi", tuple(Response(" a", rank, label=not rank) for rank in (0, 1)))
    (row,) = encode(tokenizer, labelled)
    assert row.ranks is None
    assert ResponseEncoder(tokenizer, 8).fit(row).kept == (0, 1)


def test_rows_without_a_loss_are_bad(tokenizer):
    fit = ResponseEncoder(tokenizer, 8, "drop").fit
    with pytest.raises(BadRowError, match="the prompt has no tokens, so nothing predicts"):
        fit(tokens([], [1], [2]))
    with pytest.raises(BadRowError, match="a response has no tokens that could be scored"):
        fit(tokens([1], [], [2]))


def test_settings_are_checked(tokenizer):
    with pytest.raises(ValueError, match=r"data\.max_length is 1; a prompt and a response need at least 2"):
        ResponseEncoder(tokenizer, 1)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no eos_token"):
        ResponseEncoder(tokenizer, 8)


def test_every_pair_of_the_real_data(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "models" / "stories260k-llama"))
    with gzip.open(shared_data / "hh_rlhf_harmless" / "rows_0_1799.jsonl.gz", "rt", encoding="utf-8") as lines:
        pairs = [list(json.loads(line).values()) for line, _ in zip(lines, range(400), strict=False)]
    begins = [[text.rfind("\n\nAssistant:") + len("\n\nAssistant:") for text in pair] for pair in pairs]
    split = [
        (pair[0][: begin[0]], pair[0][begin[0] :], pair[1][begin[1] :])
        for pair, begin in zip(pairs, begins, strict=True)
    ]
    rows = encode(tokenizer, *(record(*texts) for texts in split))
    for (prompt, *texts), row in zip(split, rows, strict=True):
        asked, *answers = texts_of(tokenizer, row)
        assert asked.removeprefix("<s>").strip() == prompt.strip()
        assert answers == [f"{text.removeprefix(' ')}<s>" for text in texts]  # decoding drops the first space
        assert row.prompt.count(1) == 1
        assert all(response.tokens.count(1) == 1 for response in row.responses)
