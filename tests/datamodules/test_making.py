"""From rows to a batch: what is lost is counted by reason, told by address, and never stops more than it must."""

from __future__ import annotations

import json

import pytest

from datamodules.making import BatchMaker, Outcome
from datamodules.options import Source
from datamodules.order import RowOrder
from datamodules.preference import PreferenceDataModule
from datamodules.sources import OpenSource
from lit_rlhf.types import Cursor

GOOD = {"prompt": "p", "chosen": " a", "rejected": " b"}
LONG = {"prompt": "p " * 100, "chosen": " a", "rejected": " b"}


@pytest.fixture
def task(tiny_tokenizer):
    def make(**options):
        return PreferenceDataModule(
            tokenizer=tiny_tokenizer, **{"max_length": 64, "truncation": "drop", **options}
        ).task()

    return make


@pytest.fixture
def rows(tmp_path):
    def make(*lines):
        path = tmp_path / "bad.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return [row for row, *_ in _rows(OpenSource(Source(str(path), name="mine")))]

    return make


def _rows(source):
    return [(row,) for row in RowOrder([source]).rows(0)]


def rows_of(batch):
    return sorted(row for part in batch.micro_batches for row in part.rows)


def reasons(batch):
    return {name: count for name, count in batch.notes.items() if name not in ("tokens", "room")}


@pytest.mark.parametrize(
    ("row", "message", "reason"),
    [
        ({**GOOD, "chosen": ""}, "'chosen' has an empty response", "empty_response"),
        ({**GOOD, "chosen": " b"}, "the responses are identical", "identical_responses"),
        ('{"prompt": "p", ', "line is not JSON: Expecting property name", "broken_json"),
        ({"prompt": "p", "completion": "c"}, "one response, and nothing to compare it with", "no_pair"),
        (
            {"context": "c", "completions": [{"rank": 0, "completion": "a"}, {"rank": 0, "completion": "b"}]},
            "rank",
            "no_pair",
        ),
    ],
)
def test_bad_rows_are_refused_by_address_or_counted(task, rows, row, message, reason):
    found = rows(GOOD, row, GOOD)
    with pytest.raises(ValueError, match=r"^bad\.jsonl:2: .*; mend the row, or set data\.on_bad_row=drop") as caught:
        BatchMaker(task())(found, Cursor())
    assert message in str(caught.value)
    batch = BatchMaker(task(), "drop")(found, Cursor(3, 4))
    assert (rows_of(batch), reasons(batch)) == (["bad.jsonl:1", "bad.jsonl:3"], {f"dropped/{reason}": 1})
    assert batch.cursor == Cursor(3, 4)
    named = BatchMaker(task(), "drop", name_sources=True)(found, Cursor())
    assert reasons(named) == {f"dropped/{reason}/mine": 1}


def test_a_long_prompt_is_cut_or_dropped_and_counted(task, rows):
    found = rows(GOOD, LONG, LONG)
    batch = BatchMaker(task(truncation="prompt_left"))(found, Cursor())
    assert (batch.num_pairs, reasons(batch)) == (3, {"truncated/prompt": 2})
    both = BatchMaker(task(truncation="prompt_left"))(rows({**LONG, "chosen": "a " * 100}), Cursor())
    assert reasons(both) == {"truncated/prompt_and_response": 1}
    found = rows(GOOD, LONG, LONG)
    with pytest.warns(UserWarning, match=r"dropped bad\.jsonl:2: has \d+ prompt tokens, which leaves no room") as told:
        batch = BatchMaker(task(truncation="response_right"))(found, Cursor())
    assert len(told) == 1
    assert (batch.num_pairs, reasons(batch)) == (1, {"dropped/prompt_too_long": 2})


def test_pictures_that_nobody_would_see_are_refused_unless_they_are_ignored(task, rows):
    found = rows(GOOD, {**GOOD, "images": ["b.png"]})
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: the row shows pictures, but .* data\.images=ignore to train"):
        BatchMaker(task())(found, Cursor())
    batch = BatchMaker(task(), "drop")(found, Cursor())
    assert (batch.num_pairs, reasons(batch)) == (1, {"dropped/unseen_images": 1})


def test_pictures_that_are_ignored_are_said_to_be_unseen(task, rows):
    found = rows({**GOOD, "image": "a.png"}, {**GOOD, "images": ["b.png", "c.png"]})
    with pytest.warns(UserWarning, match=r"bad\.jsonl:1: its pictures are not seen, as data\.images=ignore") as told:
        batch = BatchMaker(task(images="ignore"))(found, Cursor())
    assert len(told) == 1
    assert (batch.num_pairs, reasons(batch)) == (2, {"ignored/images": 2})


def test_a_step_without_pairs_is_still_a_batch(task, rows):
    batch = BatchMaker(task(), "drop")(rows({**GOOD, "chosen": ""}), Cursor())
    assert (batch.micro_batches, reasons(batch)) == ((), {"dropped/empty_response": 1})


def test_a_missing_template_is_no_bad_row(task, rows, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    found = rows(GOOD, {**GOOD, "prompt": [{"role": "user", "content": "Hi"}]})
    with pytest.raises(ValueError, match=r"^bad\.jsonl:2: the row is a conversation, but tokenizer .* has no chat"):
        BatchMaker(task(), "drop")(found, Cursor())


def test_what_should_not_happen_comes_with_an_address_too(task, rows, monkeypatch):
    made = task()
    whole = made.encode

    def encode(rendered):
        if any(text.prompt == "worse" for text in rendered):
            raise KeyError("planted")
        return whole(rendered)

    monkeypatch.setattr(type(made), "encode", lambda self, rendered: encode(rendered))
    with pytest.raises(RuntimeError, match=r"^bad\.jsonl:3: KeyError: 'planted'"):
        BatchMaker(made, "drop")(rows(GOOD, GOOD, {**GOOD, "prompt": "worse"}), Cursor())


def test_nesting_without_end_is_a_bad_row(task, rows):
    deep = '{"prompt": "p", "chosen": ' + "[" * 100_000 + "]" * 100_000 + ', "rejected": "b"}'
    batch = BatchMaker(task(), "drop")(rows(GOOD, deep), Cursor())
    assert batch.num_pairs == 1
    assert sum(reasons(batch).values()) == 1


def test_outcomes_keep_what_is_lost_and_why(task, rows):
    good, bad, long = BatchMaker(task()).outcomes(rows(GOOD, {**GOOD, "chosen": 3}, LONG))
    assert isinstance(good, Outcome)
    assert (good.error, bad.error.reason, long.error.reason) == (None, "wrong_type", "too_long")
    assert (bad.record, long.record.form) == (None, good.record.form)
    assert len(long.whole.prompt) > 64
    assert long.tokens is None
