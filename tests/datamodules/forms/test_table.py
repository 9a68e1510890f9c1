"""Every form by its example in the documentation; real files; and rows of every shape that chance finds."""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.forms.fields import Fields
from datamodules.forms.table import FORMS, Form, find_form, read_row
from datamodules.records import BadRowError, Layout, Record

PAGE = (Path(__file__).parents[3] / "docs" / "data_formats.md").read_text()
EXAMPLES = {name: json.loads(row) for name, row in re.findall(r"^\| ([^|`]+) \| `(\{.*\})` \|$", PAGE, re.MULTILINE)}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ASKED, TWO, THREE = [user("1 + 1?")], [assistant("2")], [assistant("3")]
# The prompt of each example, and its responses from best to worst.
READ = {
    "tokenised pair": ([1, 5], [[6, 2], [7, 2]]),
    "tokenised sequence": ([1, 5], [[6, 2]]),
    "TRL preference, explicit": ("1 + 1 =", [" 2", " 3"]),
    "ShareGPT ranking": (ASKED, [TWO, THREE]),
    "OpenAI ranking": (ASKED, [TWO, THREE]),
    "Alpaca ranking": ([user("Hi"), assistant("Hello"), user("Add.\n1, 1")], [TWO, THREE]),
    "Axolotl preference": ([{"role": "system", "content": "Be brief."}, *ASKED], [TWO, THREE]),
    "Anthropic HH dialogue": ("\n\nHuman: 1 + 1?\n\nAssistant:", [" 2", " 3"]),
    "TRL preference, implicit": (ASKED, [TWO, THREE]),
    "LLaMA-Factory v1 pair": (ASKED, [TWO, THREE]),
    "ms-swift, rejected messages": (ASKED, [TWO, THREE]),
    "ms-swift, rejected response": (ASKED, [TWO, THREE, [assistant("4")]]),
    "SHP comparison": (ASKED, [TWO, THREE]),
    "PKU comparison": ("1 + 1 =", [" 2", " 3"]),
    "HelpSteer comparison": (ASKED, [TWO, THREE]),
    "arena comparison": (ASKED, [TWO, THREE]),
    "ranked answers": (ASKED, [TWO, THREE]),
    "scored answers": (ASKED, [TWO, THREE]),
    "answers beside scores": ("1 + 1 =", [" 2", " two", " 3"]),
    "stepwise supervision": ("1 + 1 + 1 =", ["1 + 1 is 2.\n2 + 1 is 4."]),
    "graded answers": (ASKED, [TWO, THREE]),
    "judged statement": ([user("True or false: One and one is two.")], [[assistant("true")], [assistant("false")]]),
    "answer with a thumb": ("1 + 1 =", [" 2"]),
    "conversation with a thumb": (ASKED, [THREE]),
    "sampled answers": ("1 + 1 =", [" 2", " 3"]),
    "ShareGPT conversation": (ASKED, [TWO]),
    "OpenAI conversation": (ASKED, [TWO]),
    "prompt and completion": ("1 + 1 =", [" 2"]),
    "Self-Instruct instances": ([user("Add.\n1, 1")], [TWO]),
    "Alpaca instruction": ([user("Add.\n1, 1")], [TWO]),
    "question and answer": (ASKED, [TWO]),
    "tokenised prompt": ([1, 5], []),
    "prompt alone": (ASKED, []),
    "instruction alone": ([user("Add.\n1, 1")], []),
    "question alone": (ASKED, []),
    "text": ("", ["Once upon a time there was a fox."]),
}


def test_the_page_shows_every_form_in_the_order_of_the_table():
    assert list(EXAMPLES) == list(READ) == [form.name for form in FORMS]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_form_is_read_by_it(name: str):
    record, *more = read_row(EXAMPLES[name])
    assert (record.form, record.prompt) == (name, READ[name][0])
    assert [response.text for response in record.responses] == READ[name][1]
    assert len(more) == (name == "Self-Instruct instances")


@pytest.mark.parametrize("name", EXAMPLES)
def test_order_of_keys_and_null_columns_change_nothing(name: str):
    row, rng = EXAMPLES[name], random.Random(0)
    keys = [*row, "margin", "tools", "id"]
    expected = read_row(row)
    for _ in range(5):
        rng.shuffle(keys)
        assert read_row({key: row.get(key) for key in keys}) == expected
    assert read_row({**dict.fromkeys({key for other in EXAMPLES.values() for key in other}), **row}) == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_row_is_not_changed(name: str):
    row = copy.deepcopy(EXAMPLES[name])
    read_row(row)
    assert row == EXAMPLES[name]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_no_form_above_reads_the_example_of_another(form: Form):
    fields = Fields(EXAMPLES[form.name])
    assert [above.name for above in FORMS[: FORMS.index(form)] if _fits(above, fields)] == []
    assert find_form(fields) == form


def _fits(form: Form, fields: Fields) -> bool:
    return all(fields.first(*names) for names in form.needs) and form.holds(fields)


def test_all_that_is_not_in_the_prompt_reaches_the_reward_function():
    def columns(**row):
        return read_row(row)[0].columns

    assert columns(prompt="p", reward_model={"ground_truth": "2"}, none=None) == {"reward_model": {"ground_truth": "2"}}
    assert columns(question="q", answer="a", level=3) == {"answer": "a", "level": 3}
    options = {"margin": 1, "tools": [{"name": "f"}], "chat_template_kwargs": {"x": 1}, "image": "a.png"}
    assert columns(prompt="p", chosen="a", rejected="b", **options) == {"chosen": "a", "rejected": "b"}
    assert columns(instruction="i", input="x", system="s", history=[["a", "b"]], output="o") == {"output": "o"}
    assert columns(prompt="p", system="s", question="other") == {"question": "other"}
    assert columns(input_ids=[1, 2, 3], completion_mask=[1, 0, 1])["trained_mask"] == [True, False, True]


def test_options_and_pictures_reach_the_record():
    (record,) = read_row(
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "2", "tools": "[1]", "image": "x.png"}
    )
    assert record[3:6] == (2.0, [1], {})
    assert (record.prompt, record.images) == ("<image>p", ("x.png",))


def test_a_layout_renames_before_the_form_is_decided():
    (record,) = read_row({"q": "1?", "a": "2"}, Layout({"question": "q", "answer": "a"}))
    assert (record.form, record.prompt, record.columns) == ("question and answer", [user("1?")], {"answer": "2"})
    swap = Layout({"prompt": "completion", "completion": "prompt"})
    assert read_row({"prompt": "a", "completion": "p"}, swap)[0].prompt == "p"
    tagged = Layout(
        {"messages": "talk"}, {"role_tag": "who", "content_tag": "said", "user_tag": "ME", "assistant_tag": "IT"}
    )
    talk = [{"who": "ME", "said": "1 + 1?"}, {"who": "IT", "said": "2"}]
    assert read_row({"talk": talk}, tagged)[0][:2] == ("OpenAI conversation", ASKED)


BAD = [
    ([1], "wrong_type", "a row is list '[1]'; it must be a mapping"),
    ({}, "unknown_form", "(keys found: none)"),
    ({"a": 1, "b": None}, "unknown_form", "(keys found: 'a', 'b' (null))"),
    ({3: "x"}, "wrong_type", "a key of the row is int '3'"),
    ({"prompt": "p", "chosen": "a"}, "missing_key", "row has no 'rejected' (keys found: 'prompt', 'chosen')"),
    ({"prompt": "p", "chosen": "a", "rejected": None}, "missing_key", "'rejected' (null)), which the nearest form"),
    ({"prompt": "p", "chosen": "a", "rejcted": "b"}, "missing_key", "did you mean 'rejected' by 'rejcted'?"),
    ({"messages": [user("x"), assistant("y")], "rejected": "b"}, "missing_key", "row has no 'chosen'"),
    (
        {"prompt": "p", "completions": ["a", "b"], "scores": 1},
        "unknown_form",
        "it needs answers {completion, rank}",
    ),
    ({"completions": ["a", "b"], "labels": [1, 0]}, "missing_key", "row has no 'prompt' or 'context' or 'messages'"),
    ({"completion": "a"}, "missing_key", "row has no 'prompt'"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_row(row, reason, message):
    with pytest.raises(BadRowError) as caught:
        read_row(row)
    assert caught.value.reason == reason
    assert message in str(caught.value)


def test_deep_values_are_bad_rows():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for row in ({"tools": deep, "prompt": "p"}, {"messages": deep}, {"messages": [user(deep)]}, {"prompt": deep}):
        with pytest.raises(BadRowError, match=r"nested|must be"):
            read_row(row)
    assert read_row({"prompt": "p", "notes": deep})[0].columns["notes"] is deep


def test_huge_values_take_no_longer_than_they_are_long():
    huge = "word " * 2_000_000
    rows = [
        {"prompt": huge, "completion": huge},
        {huge: huge, "prmpt": 1},
        {"messages": [{"role": huge, "content": huge}, assistant(huge)]},
        {"question": "q", "answer": "a", "label": huge},
        {"prompt": "p", "margin": huge},
        {str(number): number for number in range(100_000)},
        {"prompt": "p", "completion": 10**5000},
        {"prompt": "p", "margin": 10**5000},
    ]
    start = time.perf_counter()
    messages = [str(error) for error in map(_error, rows) if error]
    assert time.perf_counter() - start < 5
    assert len(messages) == 5
    assert max(map(len, messages)) < 2000


def _error(row):
    try:
        assert all(isinstance(record, Record) for record in read_row(row))
    except BadRowError as error:
        return error


TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["user", "assistant", "gpt", "true", "<image>", "\n\nHuman:"]
)
PLAIN = st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | TEXTS
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
KEYS = sorted(
    {key for row in EXAMPLES.values() for key in row} | {"tools", "margin", "images", "system", "chat_template_kwargs"}
)


@given(JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5))
@settings(max_examples=400, deadline=None)
def test_any_row_is_read_or_refused(row):
    _error(row)


@given(st.data())
@settings(max_examples=800, deadline=None)
def test_a_broken_example_is_read_or_refused(data):
    row = copy.deepcopy(data.draw(st.sampled_from(list(EXAMPLES.values()))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = row
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
                place[key] = data.draw(JSON)
                break
            place = place[key]
    _error(row)


REAL = {
    "gsm8k/train.jsonl": ("question and answer", 7473, {}),
    "gsm8k/test.jsonl": ("question and answer", 1319, {}),
    "gsm8k/example_model_solutions.jsonl": ("graded answers", 1319, {}),
    "hh_rlhf_harmless/rows_0_1799.jsonl.gz": ("Anthropic HH dialogue", 1796, {"empty_response": 4}),
    "llama_factory/dpo_en_demo.json": ("ShareGPT ranking", 300, {}),
    "llama_factory/dpo_zh_demo.json": ("ShareGPT ranking", 300, {}),
    "llama_factory/kto_en_demo.json": ("conversation with a thumb", 300, {}),
    "llama_factory/mllm_demo.json": ("OpenAI conversation", 6, {}),
    "llama_factory/v1_dpo_demo.jsonl": ("LLaMA-Factory v1 pair", 10, {}),
    "llama_factory/v1_multimodal_demo.jsonl": ("OpenAI conversation", 24, {}),
    "medicalgpt_zh/dpo_zh_500.jsonl": ("ShareGPT ranking", 500, {}),
    "medicalgpt_zh/toolcall_dpo_zh_demo.jsonl": ("ShareGPT ranking", 11, {}),
    "nlvr/color_pairs_dev.jsonl": ("TRL preference, explicit", 2191, {}),
    "nlvr/color_pairs_test.jsonl": ("TRL preference, explicit", 864, {}),
    "nlvr/dev.jsonl": ("judged statement", 989, {}),
    "nlvr/test.jsonl": ("judged statement", 400, {}),
    "self_instruct/seed_tasks.jsonl": ("Self-Instruct instances", 175, {}),
    "self_instruct/user_oriented_instructions.jsonl": ("Self-Instruct instances", 252, {}),
    "tinystories/mojibake.jsonl": ("text", 40, {}),
    "tinystories/test.jsonl": ("prompt and completion", 145, {}),
    "tinystories/train.jsonl": ("prompt and completion", 579, {}),
    "tinystories_pairs/test.jsonl": ("TRL preference, explicit", 400, {}),
    "tinystories_pairs/train.jsonl": ("TRL preference, explicit", 1600, {}),
}


def _rows(file: Path) -> list:
    text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]


def test_no_real_file_is_forgotten(shared_data):
    found = {str(file.relative_to(shared_data)) for file in shared_data.glob("*/*.json*")}
    assert found == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_real_file(name: str, shared_data):
    form, num_read, refused = REAL[name]
    forms, reasons = Counter(), Counter()
    for row in _rows(shared_data / name):
        try:
            forms[read_row(row)[0].form] += 1
        except BadRowError as error:
            reasons[error.reason] += 1
    assert (forms, reasons) == ({form: num_read}, refused)


def test_real_pictures_and_calls(shared_data):
    def read(name):
        return [record for row in _rows(shared_data / name) for record in read_row(row)]

    for name in ("mllm_demo.json", "v1_multimodal_demo.jsonl"):
        records = read(f"llama_factory/{name}")
        marks = [sum(turn["content"].count("<image>") for turn in record.prompt) for record in records]
        assert marks == [len(record.images) for record in records]
        assert set(marks) == {1, 2}
    assert all(record.prompt.startswith("<image>") for record in read("nlvr/color_pairs_test.jsonl"))
    called = read("medicalgpt_zh/toolcall_dpo_zh_demo.jsonl")
    assert all(record.tools for record in called)
    assert sum("tool_calls" in turn for record in called for turn in record.prompt) == 4
    thumbs = [response.label for record in read("llama_factory/kto_en_demo.json") for response in record.responses]
    assert (thumbs.count(True), thumbs.count(False)) == (150, 150)
    graded = read("gsm8k/example_model_solutions.jsonl")
    assert sum(len({response.label for response in record.responses}) == 2 for record in graded) == 731
    assert sum(len(record.responses) for record in graded) == 5276
