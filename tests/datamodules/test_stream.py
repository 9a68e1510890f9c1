"""The n-th batch of an epoch depends on seed, epoch and n alone; every row comes exactly as often as it should."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from datamodules.order import RowOrder
from datamodules.readers import blocks, columns, files, lines
from datamodules.sources import OpenSource, Source, open_sources
from datamodules.stream import BatchMaker, StepStream, global_batches, load_steps
from datamodules.tokenization import PairTokenizer
from lit_rlhf.types import Cursor

WRITERS = [
    "lines.jsonl",
    "blank.jsonl",
    "members.jsonl.gz",
    "array.json",
    "table.csv",
    "groups.parquet",
    "stream.arrow",
]


def memory(num_rows, name="train", weight=1.0):
    rows = [{"prompt": f"{name} {number}", "chosen": " yes", "rejected": " no"} for number in range(num_rows)]
    return OpenSource(Source(name, weight), rows=rows)


@pytest.fixture
def maker(tiny_tokenizer):
    def make(token_budget=64, on_bad_row="raise", name_sources=False, max_length=64, truncation="drop"):
        tokenizer = PairTokenizer(tiny_tokenizer, max_length, truncation)
        return BatchMaker(tokenizer, token_budget, on_bad_row, name_sources)

    return make


def lost(batch):
    return {name: count for name, count in batch.notes.items() if "/" in name}


def rows_of(batch):
    return sorted(row for pairs in batch.micro_batches for row in pairs.rows)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.4, 1.0, 2.0, 2.5]), min_size=3, max_size=3),
    batch_size=st.integers(1, 8),
    buffer=st.sampled_from([0, 1, 5, 12, 1000]),
    world_size=st.integers(1, 3),
    budgets=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_any_split_over_ranks_budgets_and_starts(
    maker, sizes, weights, batch_size, buffer, world_size, budgets, epoch, data
):
    sources = [memory(size, name, weight) for size, name, weight in zip(sizes, "abc", weights, strict=False)]
    order = RowOrder(sources, seed=3, shuffle_buffer=buffer)
    assume(order.num_rows)

    def run(rank, world_size, token_budget, cursor):
        stream = StepStream(order, maker(token_budget), batch_size, rank, world_size)
        stream.cursor = cursor
        return list(stream)

    whole = run(0, 1, budgets[0], Cursor(epoch))
    everything = Counter(row.address for row in order.rows(epoch))
    assert Counter(row for batch in whole for row in rows_of(batch)) == everything
    assert [batch.num_pairs for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)
    assert len(whole) == StepStream(order, maker(), batch_size).num_batches()
    assert [batch.cursor.batch for batch in whole] == [*range(1, len(whole)), 0]
    assert whole[-1].cursor == Cursor(epoch + 1)
    done = data.draw(st.integers(0, len(whole) - 1), label="done")
    cursor = whole[done - 1].cursor if done else Cursor(epoch)
    saved = Cursor(*json.loads(json.dumps(cursor)))
    ranks = [run(rank, world_size, budgets[1], saved) for rank in range(world_size)]
    together = [sorted(chain(*map(rows_of, parts))) for parts in zip(*ranks, strict=True)]
    assert together == [rows_of(batch) for batch in whole[done:]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_rows=st.integers(1, 60), batch_size=st.integers(1, 9), buffer=st.integers(0, 40), data=st.data())
def test_any_kill_of_any_kind_of_file(write_rows, monkeypatch, num_rows, batch_size, buffer, data):
    for module in (blocks, files, lines, columns):
        monkeypatch.setattr(module, "BLOCK_BYTES", 50)
    rows = [{"n": f"{number}"} for number in range(num_rows)]
    paths = [str(write_rows(name, rows)) for name in data.draw(st.permutations(WRITERS))[:3]]

    def steps(cursor, batch_size):
        order = RowOrder(open_sources([paths[0], Source(paths[1], weight=1.3), paths[2]], "train"), 5, buffer)
        return [([row.address for row in rows], after) for rows, after in global_batches(order, cursor, batch_size)]

    whole = steps(Cursor(1), batch_size)
    done = data.draw(st.integers(1, len(whole)), label="done")
    if done < len(whole):
        saved = Cursor(*json.loads(json.dumps(whole[done - 1][1])))
        assert [rows for rows, _ in steps(saved, batch_size)] == [rows for rows, _ in whole[done:]]
        other = chain.from_iterable(rows for rows, _ in steps(saved, 4))  # another batch size goes on as well
        assert list(other) == list(chain.from_iterable(rows for rows, _ in whole[done:]))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("done", [0, 1, 4])
def test_workers_do_not_change_the_order(maker, num_workers, done):
    stream = StepStream(RowOrder([memory(23)], seed=1, shuffle_buffer=9), maker(), batch_size=4)
    stream.cursor = Cursor(2)
    alone = [(rows_of(batch), batch.cursor) for batch in stream]
    stream.cursor = alone[done - 1][1] if done else Cursor(2)
    shared = [(rows_of(batch), batch.cursor) for batch in load_steps(stream, num_workers)]
    assert shared == alone[done:]


def test_workers_share_a_stream_of_the_datasets_library(maker):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([GOOD | {"prompt": f"p {number}"} for number in range(300)])
    sources = open_sources(rows.to_iterable_dataset(num_shards=4), "train")
    stream = StepStream(RowOrder(sources, shuffle_buffer=0), maker(10_000), batch_size=20)
    alone = [(rows_of(batch), batch.cursor) for batch in stream]
    assert len(alone) == 15
    assert [(rows_of(batch), batch.cursor) for batch in load_steps(stream, 2)] == alone
    stream.cursor = alone[13][1]
    assert [rows_of(batch) for batch in load_steps(stream, 2)] == [alone[14][0]]


def test_a_checkpoint_holds_a_cursor(tmp_path, write_rows):
    order = RowOrder(open_sources(str(write_rows("table.csv", [{"n": "1"}] * 9)), "train"), 0, 3)
    cursors = [cursor for _, cursor in global_batches(order, Cursor(), 2)]
    torch.save(list(map(list, cursors)), tmp_path / "saved.pt")
    assert [Cursor(*saved) for saved in torch.load(tmp_path / "saved.pt", weights_only=True)] == cursors


def test_length_is_told_only_if_wanted_and_known(maker):
    stream = StepStream(RowOrder([memory(23)], shuffle_buffer=9), maker(), batch_size=4)
    assert len(load_steps(stream)) == 6
    with pytest.raises(TypeError, match="the number of rows is not known, or not wanted"):
        len(load_steps(stream, is_length_wanted=False))
    datasets = pytest.importorskip("datasets")
    (source,) = open_sources(datasets.Dataset.from_list([GOOD]).to_iterable_dataset(), "train")
    with pytest.raises(TypeError, match="not known"):
        len(load_steps(StepStream(RowOrder([source]), maker(), batch_size=4)))


def test_data_that_shrank_are_told(maker):
    with pytest.raises(ValueError, match=r"the data end before Cursor\(epoch=0, batch=5, .*; train changed"):
        next(global_batches(RowOrder([memory(23)], shuffle_buffer=9), Cursor(0, 5, 9, 0, [None]), 4))


GOOD = {"prompt": "p", "chosen": " a", "rejected": " b"}
LONG = {"prompt": "p " * 100, "chosen": " a", "rejected": " b"}


def write(tmp_path, *lines):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return StepStream(RowOrder([OpenSource(Source(str(path), name="mine"))]), None, batch_size=8)


@pytest.mark.parametrize(
    ("row", "message", "reason"),
    [
        ({"prompt": "p", "chosen": "a"}, "row has no 'rejected' (keys found: 'prompt', 'chosen')", "missing_key"),
        ({**GOOD, "chosen": ""}, "'chosen' has an empty response", "empty_response"),
        ({**GOOD, "chosen": " b"}, "'chosen' and 'rejected' are identical", "identical_responses"),
        ('{"prompt": "p", ', "line is not JSON: Expecting property name", "broken_json"),
    ],
)
def test_bad_rows_are_refused_by_address_or_counted(tmp_path, maker, row, message, reason):
    stream = write(tmp_path, GOOD, row, GOOD)
    stream.make_batch = maker()
    with pytest.raises(ValueError, match=r"^bad\.jsonl:2: .*; mend the row, or set data\.on_bad_row=drop") as caught:
        list(stream)
    assert message in str(caught.value)
    stream.make_batch = maker(on_bad_row="drop")
    (batch,) = stream
    assert (rows_of(batch), lost(batch)) == (["bad.jsonl:1", "bad.jsonl:3"], {f"dropped/{reason}": 1})
    stream.make_batch = maker(on_bad_row="drop", name_sources=True)
    assert lost(next(iter(stream))) == {f"dropped/{reason}/mine": 1}


def test_a_long_prompt_is_cut_or_dropped_and_counted(tmp_path, maker):
    stream = write(tmp_path, GOOD, LONG, LONG)
    stream.make_batch = maker(truncation="prompt_left")
    (batch,) = stream
    assert (batch.num_pairs, lost(batch)) == (3, {"truncated/prompt": 2})
    stream.make_batch = maker(truncation="response_right")
    with pytest.warns(
        UserWarning, match=r"dropped bad\.jsonl:2: has \d+ prompt tokens, which leaves no room"
    ) as warned:
        (batch,) = stream
    assert len(warned) == 1
    assert (batch.num_pairs, lost(batch)) == (1, {"dropped/prompt_too_long": 2})


def test_a_step_without_pairs_is_still_a_batch(tmp_path, maker):
    stream = write(tmp_path, {**GOOD, "chosen": ""})
    stream.make_batch = maker(on_bad_row="drop")
    (batch,) = stream
    assert (batch.micro_batches, lost(batch), batch.cursor) == ((), {"dropped/empty_response": 1}, Cursor(1))


def test_no_rows_at_all(tmp_path):
    with pytest.raises(ValueError, match="no rows in mine"):
        list(write(tmp_path, "", "  "))


def test_a_missing_template_is_no_bad_row(tmp_path, maker):
    stream = write(tmp_path, {**GOOD, "prompt": [{"role": "user", "content": "Hi"}]})
    stream.make_batch = maker(on_bad_row="drop")
    stream.make_batch.tokenizer.tokenizer.chat_template, saved = (
        None,
        stream.make_batch.tokenizer.tokenizer.chat_template,
    )
    try:
        with pytest.raises(ValueError, match=r"^bad\.jsonl:1: the row is a conversation, but tokenizer .* has no chat"):
            list(stream)
    finally:
        stream.make_batch.tokenizer.tokenizer.chat_template = saved
