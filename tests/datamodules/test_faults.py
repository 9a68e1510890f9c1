"""Broken rows of every kind: an error that begins with the row's address, or a counted drop; never anything else."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import os
import re
import sys
from collections import Counter
from functools import partial

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules import PreferenceDataModule, PromptDataModule, SFTDataModule

TASKS = {
    "pairs": PreferenceDataModule,
    "unpaired": PreferenceDataModule,
    "texts": SFTDataModule,
    "prompts": PromptDataModule,
}
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "good"}]
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]}
ROWS = [
    {"prompt": "Say it.", "chosen": " yes", "rejected": " no", "margin": 0.5},
    {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": [CALL], "tools": "[]", "chat_template_kwargs": {"a": 1}},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "d"}, "rejected": "e"},
    {"instruction": "Add", "input": "1", "history": [["a", "b"]], "system": "Be.", "chosen": "2", "rejected": "3"},
    {"messages": TALK, "rejected_response": ["bad", "worse"]},
    {"prompt": "p", "response_0": "x", "response_1": "y", "better_response_id": 1},
    {"context": TALK[:1], "completions": [{"rank": 1, "completion": TALK[1:]}, {"rank": 0, "completion": "y"}]},
    {"prompt": "p", "responses": ["x", "y", "w"], "scores": [1, 2, 3]},
    {"question": "q", "m": {"is_correct": True, "solution": "s"}},
    {"sentence": "The sky is blue", "label": "true", "image": "../../etc/passwd"},
    {"prompt": "p", "completion": " c", "label": True},
    {"messages": [TALK[0], CALL, {"role": "tool", "content": "7"}, TALK[1]], "tools": [{"name": "f"}]},
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}, TALK[1]]},
    {"text": "Once upon a time"},
    {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
    {"prompt_input_ids": [5, 6], "chosen_input_ids": [7, 8], "rejected_input_ids": [9]},
]
NASTY = [
    *(
        "",
        " ",
        "\x00",
        "\ud800",
        "\ufffe",
        "\u202e\u0645",
        "\u200b",
        "\x85\u2028\r\n",
        "\ufeff",
        "\u4f60" * 30,
        "x" * 3000,
    ),
    *("<s>", "</s>", "<|assistant|>", "<image>", "<image><image>", "<think>", "\n\nHuman:", "\n\nAssistant:"),
    *("\ue0000\ue001", "\ue00099\ue001", "\ue000m0\ue001", "\ue000m9\ue001", "\ue000", "\ue001\ue000"),
    *("{{ 7*7 }}", "{% for", "1" * 5000, "[" * 3000, '{"a": 1}', "nan", "1e400", "../../etc/passwd", "http://a/b"),
    *("user", "assistant", "system", "tool", "gpt", "text", "image", "thinking", "tool_call", "true", "model_a"),
]
KEYS = sorted(
    {key for row in ROWS for key in row} | set(TALK[0]) | {"from", "value", "", "\ud800", "pictures", "weight"}
)
NUMBERS = [0, 1, -1, -100, 511, 10**6, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")]
SCALARS = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(NASTY) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(KEYS), values, max_size=3),
    max_leaves=5,
)


def places_in(value):
    """Every (container, key) inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inside for place in [(value, key), *places_in(item)]]


def nested(value, times):
    for _ in range(times):
        value = [value]
    return value


@st.composite
def broken_rows(draw):
    """A good row of some form, with nothing or some things wrong inside."""
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 2))):
        if not (places := places_in(row)):
            break
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(["replace", "drop", "rename", "wrap", "deepen", "insert", "repeat"]))
        value = parent[key]
        if how == "drop":
            del parent[key]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(KEYS))] = parent.pop(key)
        elif how == "insert" and isinstance(value, str):
            parent[key] = value[:1] + draw(st.sampled_from(NASTY)) + value[1:]
        elif how == "repeat" and isinstance(value, list):
            parent[key] = value * 2
        else:
            wraps = {"wrap": [value], "deepen": nested(value, 12)}
            parent[key] = wraps[how] if how in wraps else draw(VALUES)
    return row


@st.composite
def broken_lines(draw):
    """A row as a line of JSON, which may be damaged."""
    line = json.dumps(draw(broken_rows()), ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    at = draw(st.integers(1, len(line) - 1))
    damages = [
        *(
            line[:at],
            line[:at] + b"\xff" + line[at:],
            line[:at] + b"\xef\xbb\xbf" + line[at:],
            line[:at] + b"\0" + line[at:],
        ),
        *(line[:-1] + b', "a": ' + more + b"}" for more in (b"[" * 10_000 + b"]" * 10_000, b"9" * 10_000, b"NaN")),
        line[:-1] + b', "prompt": "twice", "chosen": 3}',
    ]
    return draw(st.sampled_from(damages)) if draw(st.integers(0, 2)) == 0 else line


def as_table(rows):
    """What a spreadsheet would make of rows."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(keys or ["text"])
    for row in rows:
        cells = [row.get(key) for key in keys]
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells] or ["x"])
    return text.getvalue().encode(errors="surrogatepass")


def in_columns(rows, write):
    """Rows by column; where their values are of mixed types, or cannot be written, one column of their JSON."""
    try:
        whole = pyarrow.Table.from_pylist(rows)
        if whole.num_columns:
            return write(whole)
    except (pyarrow.ArrowException, OverflowError, TypeError, UnicodeError):
        pass
    return write(pyarrow.table({"text": [json.dumps(row) for row in rows]}))


def parquet(whole):
    content = io.BytesIO()
    pyarrow.parquet.write_table(whole, content, row_group_size=2)
    return content.getvalue()


def arrow(whole):
    content = io.BytesIO()
    with pyarrow.ipc.new_stream(content, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=2)
    return content.getvalue()


WRITERS = {
    "rows.csv": as_table,
    "rows.parquet": partial(in_columns, write=parquet),
    "rows.arrow": partial(in_columns, write=arrow),
}


def drain(data, task):
    """Addresses of the rows that were used, and the counts."""
    used, notes = set(), Counter()
    for batch in data.train_dataloader():
        parts = [batch.prompts] if task == "prompts" else batch.micro_batches
        used.update(*((prompt.row for prompt in part) if task == "prompts" else part.rows for part in parts))
        notes.update(batch.notes)
    return used, {name: count for name, count in notes.items() if name.startswith("dropped/")}


def told(read):
    """What a function gives, and what it says if it refuses with a ValueError."""
    try:
        return read(), ""
    except ValueError as error:
        return None, str(error)


def is_json(line):
    try:
        return json.loads(line) is not None
    except (ValueError, RecursionError):
        return False


def check(train, name, num_rows, tokenizer, task, buffer=0):
    """Read rows with both settings of ``on_bad_row``; gives what was used and dropped."""
    limit = "max_prompt_length" if task == "prompts" else "max_length"
    options = {"tokenizer": tokenizer, "batch_size": 3, "shuffle_buffer": buffer, limit: 64}
    options |= {"kind": task} if TASKS[task] is PreferenceDataModule else {}
    used, dropped = drain(TASKS[task](train=train, on_bad_row="drop", **options), task)
    assert len(used) + sum(dropped.values()) == num_rows
    bad = {key: count for key, count in dropped.items() if key not in ("dropped/too_long", "dropped/prompt_too_long")}
    again, error = told(lambda: drain(TASKS[task](train=train, **options), task)[0])
    assert bool(error) == bool(bad)
    if error:
        assert re.match(rf"{re.escape(name)}:\d+: ", error)
        assert len(error) < 2000
        assert error.split(": ")[0] not in used
    else:
        assert again == used
    return used, dropped


MANY = settings(
    max_examples=int(os.environ.get("EXAMPLES", "50")),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@MANY
@given(
    rows=st.lists(broken_rows(), min_size=1, max_size=4), task=st.sampled_from([*TASKS]), buffer=st.sampled_from([0, 3])
)
@pytest.mark.parametrize("name", [*WRITERS, "train"])
@pytest.mark.filterwarnings("ignore")
def test_broken_rows(tmp_path, tiny_tokenizer, name, rows, task, buffer):
    if name in WRITERS:
        (tmp_path / name).write_bytes(WRITERS[name](rows))
    check(name if name in WRITERS else rows, name, len(rows), tiny_tokenizer, task, buffer)


@MANY
@given(
    lines=st.lists(broken_lines(), min_size=1, max_size=4),
    task=st.sampled_from([*TASKS]),
    buffer=st.sampled_from([0, 3]),
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.filterwarnings("ignore")
def test_broken_lines(tmp_path, tiny_tokenizer, name, end, lines, task, buffer):
    content = end.join(lines)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    check(name, name, len(lines), tiny_tokenizer, task, buffer)


@MANY
@given(lines=st.lists(broken_lines(), min_size=1, max_size=4), task=st.sampled_from([*TASKS]))
@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
@pytest.mark.filterwarnings("ignore")
def test_broken_arrays(tmp_path, tiny_tokenizer, name, lines, task):
    content = b"[\n" + b",\n".join(lines) + b"\n]"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    _, error = told(lambda: check(name, name, len(lines), tiny_tokenizer, task))
    if error:  # nobody can tell where the next row begins
        assert re.match(rf"{re.escape(name)}:[1-4]: the JSON array breaks off", error)
        assert not all(map(is_json, lines))


GOOD = {"prompt": "p", "chosen": " a", "rejected": " b"}
LINES = {
    "wrong type, null": ({**GOOD, "chosen": None}, "missing_key"),
    "wrong type, list": ({**GOOD, "chosen": [1]}, "wrong_type"),
    "wrong type, mapping": ({**GOOD, "chosen": {"a": 1}}, "wrong_type"),
    "chosen is rejected": ({**GOOD, "chosen": " b"}, "identical_responses"),
    "empty chosen": ({**GOOD, "chosen": ""}, "empty_response"),
    "blank chosen": ({**GOOD, "chosen": " \n\t\u3000"}, "empty_response"),
    "empty prompt": ({**GOOD, "prompt": ""}, None),  # a beginning-of-sequence token precedes the response
    "prompts differ": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, None),
    "hundreds of thousands of characters": ({**GOOD, "chosen": "a b " * 100_000}, None),
    "hundreds of thousands of characters without a space": ({**GOOD, "prompt": "x" * 400_000}, None),
    "a lone surrogate": ({**GOOD, "prompt": "\ud800"}, "bad_encoding"),
    "nul": ({**GOOD, "prompt": "\x00"}, None),
    "zero width": ({**GOOD, "chosen": "\u200b"}, None),
    "mojibake": ({**GOOD, "chosen": "\u00e2\u20ac\u0153"}, None),
    "special tokens": ({**GOOD, "prompt": [{"role": "user", "content": "</s><s><|assistant|>"}]}, None),
    "a mark without a picture": ({**GOOD, "prompt": "<image>"}, None),
    "more pictures than marks": ({**GOOD, "prompt": "<image>", "images": ["a", "b"]}, "image_marks"),
    "a beginning spelled out": ({**GOOD, "prompt": "<s>p"}, None),
    "no mapping": ([GOOD], "wrong_type"),
    "no columns": ({}, "unknown_form"),
    "cut off": (b'{"prompt": "p", "chosen": "a', "broken_json"),
    "two rows": (b'{"text": "a"} {"text": "b"}', "broken_json"),
    "bytes of utf-16": ('{"prompt": 1}'.encode("utf-16-le"), "broken_json"),
    "no utf-8": (b'{"prompt": "\xff"}', "bad_encoding"),
    "a mark of utf-8 in the middle": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "broken_json"),
    "twice the same key": (b'{"prompt": 1, "prompt": "p", "chosen": " a", "rejected": " b"}', None),
    "endless nesting": (b'{"prompt": ' + b"[" * 100_000, "broken_json"),
    "endless digits": (b'{"prompt": "p", "chosen": ' + b"9" * 10_000 + b', "rejected": ""}', "broken_json"),
    "no number": (b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": NaN}', "wrong_type"),
    "infinity": (b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": -Infinity}', "wrong_type"),
}


@pytest.mark.parametrize(("line", "reason"), LINES.values(), ids=list(LINES))
@pytest.mark.filterwarnings("ignore")
def test_one_line(tmp_path, tiny_tokenizer, line, reason):
    lines = [json.dumps(GOOD).encode(), line if isinstance(line, bytes) else json.dumps(line).encode(), b"", b" \t"]
    (tmp_path / "rows.jsonl").write_bytes(b"\r\n".join([*lines, *lines[:1]]))
    used, dropped = check("rows.jsonl", "rows.jsonl", 3, tiny_tokenizer, "pairs")
    assert dropped == ({f"dropped/{reason}": 1} if reason else {})
    assert used >= {"rows.jsonl:1", "rows.jsonl:5"}


BOMBS = {
    "reads a file": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "runs a command": "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "counts without end": "{% for n in range(10 ** 12) %}{{ n }}{% endfor %}",
    "divides by nothing": "{{ 1 // 0 }}",
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "refuses": "{{ raise_exception('not so') }}",
    "is no template": "{% for %}",
    "imports": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("template", BOMBS.values(), ids=list(BOMBS))
@pytest.mark.parametrize("task", TASKS)
def test_a_template_that_blows_up_costs_the_row(tmp_path, tiny_tokenizer, template, task):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    rows = [{**GOOD, "label": True}, {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": [CALL]}]
    used, dropped = check(rows, "train", 2, tokenizer, task)
    assert (used, dropped) == ({"train:1"}, {"dropped/chat_template": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_template_inside_a_row_is_text(tiny_tokenizer):
    bomb = "{{ cycler.__init__.__globals__.os.system('touch pwned') }}{% for n in range(10 ** 12) %}"
    data = PromptDataModule(train=[{"prompt": [{"role": "user", "content": bomb}]}], tokenizer=tiny_tokenizer)
    (batch,) = data.train_dataloader()
    assert batch.prompts[0].text == f"<s><|user|>{bomb}<|assistant|>"


OPENED: list[str] = []


def note_what_is_opened(event, arguments):
    if event in ("open", "socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen", "os.system"):
        OPENED.append(f"{event} {arguments}")


@pytest.mark.parametrize("form", ["image", "images", "block"])
@pytest.mark.parametrize("task", TASKS)
def test_what_a_row_points_to_is_not_opened_for_a_model_of_text(tmp_path, tiny_tokenizer, task, form):
    if not OPENED:
        sys.addaudithook(note_what_is_opened)  # stays for good
        OPENED.append("nothing yet")
    (tmp_path / "secret.png").write_text("secret")
    for place in ("secret.png", str(tmp_path / "secret.png"), "../secret", "file:///secret", "http://secret/a.png"):
        block = {"type": "image_url", "image_url": {"url": place}}
        asked = [{"role": "user", "content": [block, {"type": "text", "text": "a"}]}] if form == "block" else TALK[:1]
        row = {"prompt": asked, "chosen": "a", "rejected": "b"}
        row |= {"image": place} if form == "image" else {"images": [place]} if form == "images" else {}
        OPENED[1:] = []
        used, _ = check([row], "train", 1, tiny_tokenizer, task)
        assert used == set(), "refused, because nobody would look"
        assert not [opened for opened in OPENED if "secret" in opened or "connect" in opened]


@pytest.mark.parametrize("same", [("pad_token", "eos_token"), ("bos_token", "eos_token"), ("pad_token", None)])
@pytest.mark.parametrize("task", TASKS)
def test_special_tokens_that_are_one_are_told_apart_by_place(tiny_tokenizer, task, same):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    name, other = same
    setattr(tokenizer, name, other and str(tokenizer.eos_token))
    rows = [{**GOOD, "label": True}, {"prompt": TALK[:1], "completion": TALK[1:], "label": True}]
    kind = {"kind": task} if TASKS[task] is PreferenceDataModule else {}
    data = TASKS[task](train=rows[:1] if task == "pairs" else rows, tokenizer=tokenizer, shuffle_buffer=0, **kind)
    (batch,) = data.train_dataloader()
    if task == "prompts":
        assert all(len(prompt.tokens) > 1 for prompt in batch.prompts)
        return
    (part,) = batch.micro_batches
    ends = [start + length - 1 for start, length in zip(part.forest.starts, part.forest.lengths, strict=True)]
    last = [ends[leaf] for leaf in part.forest.leaves]
    assert part.forest.tokens[last].tolist() == [tokenizer.eos_token_id] * len(last)
    assert set(last) <= set(part.forest.targets.tolist())  # the end of every response is learnt
