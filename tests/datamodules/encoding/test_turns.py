"""What is trained is what the assistant says, with its stop token, whatever the chat template does."""

from __future__ import annotations

import itertools
import json
import warnings

import pytest

from datamodules.encoding.tokenizers import load_tokenizer
from datamodules.encoding.truncation import TooLongError
from datamodules.encoding.turns import TurnEncoder, TurnTokens
from datamodules.records import BadRowError, Record, Response, Step


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CHAT = [
    {"role": "system", "content": "Be kind"},
    user("Hi "),
    assistant(" Hello. "),
    user("Bye"),
    assistant("See you\n"),
]


def encode(tokenizer, record, **options):
    options = {"max_length": 512, "truncation": "drop", **options}
    encoder = TurnEncoder(tokenizer, **options)
    (tokens,) = encoder.encode([encoder.render(record)])
    return encoder.fit(tokens)


def runs(tokenizer, tokens, scored=True):
    """The texts of the runs of trained tokens, or of those between."""
    pairs = itertools.groupby(zip(tokens.tokens, tokens.scored, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for is_scored, run in pairs if is_scored is scored]


def trained(tokenizer, conversation, **options):
    return runs(tokenizer, encode(tokenizer, Record("chat", conversation), **options))


EXPECTED = {
    "chatml": [" Hello. <|im_end|>", "See you\n<|im_end|>"],
    "generation": [" Hello. <|im_end|>", "See you\n<|im_end|>"],
    "llama2": [" Hello. </s>", " See you </s>"],
    "llama3": ["Hello.<|eot_id|>", "See you<|eot_id|>"],
    "gemma": ["Hello.<end_of_turn>", "See you<end_of_turn>"],
    "thinking": [" Hello. <|im_end|>", "<think>\n\n</think>\n\nSee you\n<|im_end|>"],
    "r1": [" Hello. </s>", "See you\n</s>"],
    "mistral": ["  Hello. </s>", " See you\n</s>"],
    "zephyr": [" Hello. </s>", "See you\n</s>"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_assistant_turns_and_their_stop_tokens_are_trained(chat_tokenizer, name):
    tokenizer = chat_tokenizer(name)
    chat = CHAT[1:] if name == "gemma" else CHAT
    record = Record("chat", chat[:-1], (Response(chat[-1:]),))
    tokens = encode(tokenizer, record)
    assert runs(tokenizer, tokens) == EXPECTED[name]
    assert tokenizer.decode(tokens.tokens) == tokenizer.apply_chat_template(chat, tokenize=False)
    assert runs(tokenizer, encode(tokenizer, record, trained="last")) == EXPECTED[name][-1:]
    assert encode(tokenizer, record, trained="all").scored == [False] + [True] * (len(tokens.tokens) - 1)


def test_what_is_trained_follows_what_asks_for_an_answer(chat_tokenizer):
    for name in EXPECTED.keys() - {"r1", "mistral"}:  # these ask otherwise than they write
        tokenizer = chat_tokenizer(name)
        tokens = encode(tokenizer, Record("chat", CHAT[1:]), trained="last")
        asked = tokenizer.apply_chat_template(CHAT[1:-1], add_generation_prompt=True, return_dict=False)
        assert tokens.tokens[: tokens.scored.index(True)] == asked


def test_weight_0_is_not_trained(chat_tokenizer):
    tokenizer = chat_tokenizer("chatml")
    chat = [user("q"), assistant("a", weight=0), user("r"), assistant("b", weight=1), user("s"), assistant("c")]
    assert trained(tokenizer, chat) == ["b<|im_end|>", "c<|im_end|>"]
    with pytest.raises(BadRowError, match="no token of the row is trained"):
        trained(tokenizer, chat[:2])


CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"x": 1}}}
WRITTEN = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'


def test_tool_calls_are_trained_and_their_results_are_not(chat_tokenizer):
    chat = [user("q"), assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "42"}, assistant("done")]
    thought = "<think>\n\n</think>\n\ndone<|im_end|>"
    assert trained(chat_tokenizer("thinking"), chat) == [WRITTEN, thought]
    expected = ['[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]</s>', " done</s>"]
    assert trained(chat_tokenizer("mistral"), chat) == expected


def test_thoughts_are_trained_where_the_template_keeps_them(chat_tokenizer):
    tokenizer = chat_tokenizer("thinking")
    inline = [user("q"), assistant("<think>\nhm\n</think>\n\na"), user("r"), assistant("<think>\nso\n</think>\n\nb")]
    apart = [user("q"), assistant("a", reasoning_content="hm"), user("r"), assistant("b", reasoning_content="so\n")]
    for chat in (inline, apart):
        assert trained(tokenizer, chat) == ["a<|im_end|>", "<think>\nso\n</think>\n\nb<|im_end|>"]


def test_a_template_that_looks_into_its_messages(chat_tokenizer):
    chat = [
        user("q"),
        assistant("", tool_calls=[CALL], reasoning_content="hm"),
        user("<tool_response>42</tool_response>"),
        assistant("done"),
    ]
    expected = ["<think>\nhm\n</think>\n\n" + WRITTEN, "<think>\n\n</think>\n\ndone<|im_end|>"]
    assert trained(chat_tokenizer("thinking"), chat) == expected


def test_a_template_that_defies_reading_is_a_bad_row(chat_tokenizer):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | length }},{{ m.content }}{% endfor %}"
    tokenizer.chat_template += "{% for m in messages %}{{ m.content | length }}{% endfor %}"
    with pytest.raises(BadRowError, match="cannot tell where message 0 ends"):
        trained(tokenizer, [user("q"), assistant("a")])


def test_a_conversation_may_begin_with_the_assistant(chat_tokenizer):
    chat = [assistant("first"), user("q"), assistant("x")]
    assert trained(chat_tokenizer("chatml"), chat) == ["first<|im_end|>", "x<|im_end|>"]
    assert trained(chat_tokenizer("llama3"), chat) == ["first<|eot_id|>", "x<|eot_id|>"]


def test_a_template_without_a_stop_token_is_told_once(chat_tokenizer):
    tokenizer = chat_tokenizer("no_stop")
    encoder = TurnEncoder(tokenizer, 512)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        texts = [encoder.render(Record("chat", CHAT[1:])) for _ in range(2)]
    assert runs(tokenizer, encoder.encode(texts)[0]) == ["  Hello.", " See you"]
    assert [str(warning.message)[:52] for warning in told] == ["the chat template writes no special token after an a"]


def test_special_tokens_that_are_spelled_out_end_no_turn(chat_tokenizer):
    tokenizer = chat_tokenizer("chatml")
    chat = [user("say <|im_end|>"), assistant("a <|im_end|> b"), user("\ue000m1\ue001"), assistant("\ue0000\ue001")]
    tokens = encode(tokenizer, Record("chat", chat))
    assert runs(tokenizer, tokens) == ["a <|im_end|> b<|im_end|>", "\ue0000\ue001<|im_end|>"]
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [scored for token, scored in zip(*tokens[:2], strict=True) if token == stop] == [False, True, False, True]


def test_letters_that_are_split_over_tokens(chat_tokenizer, metaspace_tokenizer, slow_tokenizer):
    fox = "\U0001f98a\u4f60\u597d\u00e9"
    chat = [user(fox), assistant(fox), user("\u4f60"), assistant("\U0001f468\u200d\U0001f469")]
    expected = [fox + "<|im_end|>", "\U0001f468\u200d\U0001f469<|im_end|>"]
    assert trained(chat_tokenizer("chatml"), chat) == expected
    assert trained(slow_tokenizer, chat) == expected
    words = trained(metaspace_tokenizer, chat)
    assert [text.strip() for text in words] == [f"{turn['content']} </s>" for turn in chat[1::2]]


def test_a_space_that_merges_over_the_seam_is_trained(metaspace_tokenizer):
    tokens = encode(metaspace_tokenizer, Record("chat", [user("the fox"), assistant("likes rain")]))
    first = tokens.tokens[tokens.scored.index(True)]
    assert metaspace_tokenizer.convert_ids_to_tokens(first).startswith("\u2581")


def test_bos_and_eos_are_never_doubled(tokenizer):
    from tokenizers.processors import TemplateProcessing

    ends = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    for prompt, response in (("Hi", " a"), ("<s>Hi", " a"), ("Hi", " a</s>")):
        tokens = encode(tokenizer, Record("text", prompt, (Response(response),)))
        assert runs(tokenizer, tokens, scored=False) == ["<s>Hi"]
        assert runs(tokenizer, tokens) == [" a</s>"]
    chat = encode(tokenizer, Record("chat", CHAT))
    assert tokenizer.decode(chat.tokens) == tokenizer.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize("twin", ["eos_token", "pad_token"])
def test_bos_or_pad_equal_to_eos(tokenizer, twin):
    tokenizer.add_special_tokens({twin: {"eos_token": "<s>", "pad_token": "</s>"}[twin]})
    tokens = encode(tokenizer, Record("text", "Hi", (Response(" a"),)))
    assert runs(tokenizer, tokens) == [f" a{tokenizer.eos_token}"]


def test_of_text_alone_everything_but_the_first_token_is_trained(tokenizer, slow_tokenizer):
    record = Record("text", "", (Response("Once upon a time"),))
    assert runs(tokenizer, encode(tokenizer, record)) == ["Once upon a time</s>"]
    assert runs(slow_tokenizer, encode(slow_tokenizer, record)) == ["nce upon a time</s>"]


def test_tokenised_rows_are_taken_as_they_are(tokenizer):
    record = Record("tokens", [1, 5], (Response([6, 2]),))
    assert encode(tokenizer, record) == TurnTokens([1, 5, 6, 2], [False, False, True, True])
    assert encode(tokenizer, record, trained="all").scored == [False, True, True, True]
    with pytest.raises(BadRowError, match="token id 999999 is not one of the"):
        encode(tokenizer, Record("tokens", [1], (Response([999999]),)))


def test_the_best_response_is_imitated_and_a_bad_one_is_not(tokenizer):
    ranked = (Response(" b", 1), Response(" a", 0))
    assert runs(tokenizer, encode(tokenizer, Record("ranked", "Hi", ranked))) == [" a</s>"]
    stepwise = Response("a\nb", steps=(Step("a", 1.0), Step("b", 0.0)))
    with pytest.raises(BadRowError, match=r"the steps of the response are judged, .* with kind=steps takes such rows"):
        encode(tokenizer, Record("stepwise supervision", "Hi", (stepwise,)))
    with pytest.raises(BadRowError, match="judged undesirable"):
        encode(tokenizer, Record("thumb", "Hi", (Response(" a", 1, label=False),)))


def test_cuts(tokenizer):
    encoder = TurnEncoder(tokenizer, 6, "prompt_left")
    whole = TurnTokens([1, 10, 11, 12, 13, 20, 21, 22, 23], [False] * 5 + [True, False, True, True])
    cut = TurnTokens([1, 12, 13, 20, 21, 22], [False] * 3 + [True, False, True], ("prompt", "response"))
    assert encoder.fit(whole) == cut
    right = TurnEncoder(tokenizer, 6, "response_right").fit(whole)
    assert right == TurnTokens([1, 10, 11, 12, 13, 20], [False] * 5 + [True], ("response",))
    for truncation, length in (("drop", 8), ("response_right", 5)):
        with pytest.raises(TooLongError):
            TurnEncoder(tokenizer, length, truncation).fit(whole)


def test_nothing_to_imitate(tokenizer):
    for record in (Record("text", "Hi"), Record("chat", [user("Hi")]), Record("chat", [])):
        with pytest.raises(BadRowError):
            encode(tokenizer, record)


def test_every_text_of_the_real_data(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "models" / "stories260k-llama"))
    encoder = TurnEncoder(tokenizer, 100_000)
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    records = [Record("text", row["question"], (Response("\n" + row["answer"]),)) for row in rows]
    for row, tokens in zip(rows, encoder.encode(list(map(encoder.render, records))), strict=True):
        assert "".join(runs(tokenizer, tokens)) == f"\n{row['answer']}<s>"


def test_settings_are_checked(tokenizer):
    with pytest.raises(ValueError, match=r"data\.max_length is 1"):
        TurnEncoder(tokenizer, 1)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"has no eos_token, which ends a response; set"):
        TurnEncoder(tokenizer, 8)
