"""Which token ends a step: in text, by any template, with merged tokens and letters of several bytes, and when cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.encoding.responses import ResponseEncoder
from datamodules.encoding.steps import StepEncoder
from datamodules.encoding.truncation import TooLongError
from datamodules.forms import read_row
from datamodules.records import BadRowError

ASKED = [{"role": "user", "content": "How many legs?"}]
STEPS = ["A spider has eight.", "A fox has four.", "Thank you."]
ROW = {"prompt": "How many legs?\n", "completions": STEPS, "labels": [1, 1, 0]}


def encode(encoder, row):
    (record,) = read_row(row)
    (tokens,) = encoder.encode([encoder.render(record)])
    return tokens


def said(tokenizer, tokens):
    """What can be read up to each marked token of the response."""
    (response,) = tokens.responses
    places = [place for place, is_marked in enumerate(response.scored) if is_marked]
    return [tokenizer.decode(list(response.tokens)[: place + 1]) for place in places]


def written(steps, separator="\n"):
    return ["".join(step + separator for step in steps[: number + 1]) for number in range(len(steps))]


def test_the_end_of_every_judged_step_is_marked(tokenizer):
    assert said(tokenizer, encode(StepEncoder(tokenizer, 200), ROW)) == written(STEPS)
    unjudged = {**ROW, "labels": [None, 1, None]}
    assert said(tokenizer, encode(StepEncoder(tokenizer, 200), unjudged)) == written(STEPS)[1:2]


def test_the_tokens_are_those_of_the_text_as_a_whole(tokenizer):
    whole = {"prompt": ROW["prompt"], "completion": written(STEPS)[-1]}
    for row, other in ((ROW, whole), ({**ROW, "prompt": ASKED}, {**whole, "prompt": ASKED})):
        steps, plain = encode(StepEncoder(tokenizer, 200), row), encode(ResponseEncoder(tokenizer, 200), other)
        assert (steps.prompt, steps.responses[0].tokens) == (plain.prompt, plain.responses[0].tokens)


@pytest.mark.parametrize("template", ["chatml", "llama2", "llama3", "gemma", "thinking", "r1", "mistral", "zephyr"])
@pytest.mark.parametrize("separator", ["\n", "\n\n", " ki\n"])
def test_steps_are_found_by_any_template(chat_tokenizer, template, separator):
    tokenizer = chat_tokenizer(template)
    tokens = encode(StepEncoder(tokenizer, 300, step_separator=separator), {**ROW, "prompt": ASKED})
    found = said(tokenizer, tokens)
    wanted = written(STEPS, separator)
    assert len(found) == 3
    for text, want in zip(found, wanted, strict=True):  # what is last may be stripped, and thoughts may come first
        assert text.endswith(want) or text.endswith(want.rstrip())
    assert found[0].endswith(wanted[0])


def test_a_template_that_strips_the_last_separator(chat_tokenizer):
    tokenizer = chat_tokenizer("llama3")
    found = said(tokenizer, encode(StepEncoder(tokenizer, 300), {**ROW, "prompt": ASKED}))
    assert found == [*written(STEPS)[:2], "\n".join(STEPS)]


def test_a_template_that_looks_into_the_steps(chat_tokenizer):
    """Behind </think> it strips line breaks, which a mark before them would keep from being stripped."""
    tokenizer = chat_tokenizer("thinking")
    row = {"prompt": ASKED, "completions": ["<think>\nEight?", "Eight.</think>", "It is eight."], "labels": [1, 0, 1]}
    found = said(tokenizer, encode(StepEncoder(tokenizer, 300), row))
    assert [text.rstrip("\n").endswith(end) for text, end in zip(found, ("Eight?", "</think>", "eight."), strict=True)]
    left_out = chat_tokenizer("r1")
    with pytest.raises(BadRowError, match=r"leaves out completions\[0\]") as caught:
        encode(StepEncoder(left_out, 300), row)
    assert caught.value.reason == "chat_template"


def test_a_prompt_that_renders_otherwise_before_an_answer(chat_tokenizer):
    tokenizer = chat_tokenizer("mistral")
    row = {**ROW, "prompt": [{"role": "system", "content": "Be brief."}, *ASKED]}
    found = said(tokenizer, encode(StepEncoder(tokenizer, 300), row))
    assert [text.endswith(step) for text, step in zip(map(str.rstrip, found), STEPS, strict=True)] == [True] * 3


def test_an_answer_that_is_begun(tokenizer, monkeypatch):
    begun = [*ASKED, {"role": "assistant", "content": "Well. "}]
    encoder = StepEncoder(tokenizer, 300)
    monkeypatch.setattr(encoder.finder, "_end", lambda *_: pytest.fail("marks were looked for one by one"))
    assert said(tokenizer, encode(encoder, {**ROW, "prompt": begun})) == written(STEPS)


def test_special_tokens_that_steps_spell_out(tokenizer):
    for prompt in ("How?", ASKED):
        row = {"prompt": prompt, "completions": ["a </s> b", "\ue0000\ue001 c"], "labels": [1, 1]}
        tokens = encode(StepEncoder(tokenizer, 300), row)
        assert len(said(tokenizer, tokens)) == 2
        first = said(tokenizer, tokens)[0]
        assert first.replace(" ", "").endswith("b\n")
        assert said(tokenizer, tokens)[1].endswith("c\n")


@pytest.mark.parametrize("separator", ["\n", "", "\N{SNOWMAN}"])
def test_the_marked_token_holds_the_last_character(tokenizer, metaspace_tokenizer, slow_tokenizer, separator):
    """A letter of several tokens has its last one marked, and nothing of the next step is read."""
    for each in (tokenizer, metaspace_tokenizer, slow_tokenizer):
        row = {"prompt": "the fox", "completions": ["likes rain", "a \N{SNOWMAN}", "thank you"], "labels": [1, 0, 1]}
        tokens = encode(StepEncoder(each, 300, step_separator=separator), row)
        wanted = written(row["completions"], separator)
        for text, want, longer in zip(said(each, tokens), wanted, [*wanted[1:], None], strict=True):
            got = text.replace(" ", "")
            assert got.startswith(want.replace(" ", ""))
            assert longer is None or len(got) < len(longer.replace(" ", ""))


@given(
    st.lists(st.text("abc \n\N{SNOWMAN}", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=5),
    st.sampled_from(["\n", "\n\n", "x\n"]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_steps(tiny_tokenizer, steps, separator, is_chat, data):
    labels = [data.draw(st.sampled_from([None, 0, 0.5, 1])) for _ in steps]
    row = {"prompt": ASKED if is_chat else "the", "completions": steps, "labels": [*labels[:-1], 1]}
    tokens = encode(StepEncoder(tiny_tokenizer, 300, step_separator=separator), row)
    wanted = [text for text, label in zip(written(steps, separator), row["labels"], strict=True) if label is not None]
    found = said(tiny_tokenizer, tokens)
    assert len(found) == len(wanted)
    for text, want in zip(found, wanted, strict=True):  # a token may reach into the next step, or end in half a letter
        assert text.startswith(want)


def test_steps_that_end_in_one_token_are_refused(tokenizer):
    row = {"prompt": "How many", "completions": [" l", "egs", "?"], "labels": [1, 1, 1]}
    assert len(tokenizer(" legs", add_special_tokens=False)["input_ids"]) == 1
    with pytest.raises(BadRowError, match=r"data\.step_separator='' does not keep them apart") as caught:
        encode(StepEncoder(tokenizer, 200, step_separator=""), row)
    assert caught.value.reason == "merged_steps"
    assert (
        len(said(tokenizer, encode(StepEncoder(tokenizer, 200, step_separator=""), {**row, "labels": [None, 1, 1]})))
        == 2
    )


def test_cut_steps_lose_their_marks_and_are_counted(tokenizer):
    whole = encode(StepEncoder(tokenizer, 200), ROW)
    length = len(whole.prompt) + len(whole.responses[0].tokens)
    ends = [place for place, is_marked in enumerate(whole.responses[0].scored) if is_marked]
    encoder = StepEncoder(tokenizer, length, "response_right")
    assert encoder.fit(whole) == whole
    for kept, reason in ((2, ("cut_steps",)), (1, ("cut_steps",) * 2)):
        encoder.max_length = len(whole.prompt) + ends[kept] - 1
        cut = encoder.fit(whole)
        assert (sum(cut.responses[0].scored), cut.dropped, cut.truncated) == (kept, reason, ("response",))
        assert said(tokenizer, cut) == written(STEPS)[:kept]
    encoder.max_length = len(whole.prompt) + ends[0]
    with pytest.raises(TooLongError, match="no judged step ends within max_length") as caught:
        encoder.fit(whole)
    assert caught.value.reason == "cut_steps"


def test_rows_without_judged_steps_are_refused(tokenizer):
    encoder = StepEncoder(tokenizer, 200)
    for row, reason, message in (
        ({"prompt": "p", "completion": "c"}, "no_steps", "read as prompt and completion: no steps to judge"),
        ({"prompt": "p"}, "no_steps", "read as prompt alone"),
        ({**ROW, "labels": [None] * 3}, "no_label", "nobody judged a step"),
    ):
        with pytest.raises(BadRowError, match=message) as caught:
            encode(encoder, row)
        assert caught.value.reason == reason
