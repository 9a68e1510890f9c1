"""The n-th batch of an epoch depends on seed, epoch and n alone; every row comes exactly as often as it should."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.sources import OpenSource, Source
from datamodules.stream import BatchMaker, RowOrder, StepStream, load_steps
from datamodules.tokenization import PairTokenizer


def memory(num_rows, name="train", weight=1.0):
    rows = [{"prompt": f"{name} {number}", "chosen": " yes", "rejected": " no"} for number in range(num_rows)]
    return OpenSource(Source(name, weight), rows=rows)


@pytest.fixture
def maker(tiny_tokenizer):
    def make(token_budget=64, on_bad_row="raise", name_sources=False, max_length=64, truncation="drop"):
        tokenizer = PairTokenizer(tiny_tokenizer, max_length, truncation)
        return BatchMaker(tokenizer, token_budget, on_bad_row, name_sources)

    return make


def rows_of(batch):
    return sorted(row for pairs in batch.micro_batches for row in pairs.rows)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_rows=st.integers(1, 30),
    batch_size=st.integers(1, 8),
    buffer=st.integers(0, 12),
    world_size=st.integers(1, 3),
    budgets=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    epoch=st.integers(0, 3),
    done=st.integers(0, 3),
)
def test_any_split_over_ranks_budgets_and_starts(maker, num_rows, batch_size, buffer, world_size, budgets, epoch, done):
    order = RowOrder([memory(num_rows)], seed=3, shuffle_buffer=buffer)

    def run(rank, world_size, token_budget, done):
        stream = StepStream(order, maker(token_budget), batch_size, rank, world_size)
        stream.cursor = (epoch, done)
        return list(stream)

    whole = run(0, 1, budgets[0], 0)
    assert Counter(row for batch in whole for row in rows_of(batch)) == Counter(
        row.address for row in order.rows(epoch)
    )
    assert sum(batch.num_pairs for batch in whole) == num_rows
    assert [batch.num_pairs for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)
    assert len(whole) == StepStream(order, maker(), batch_size).num_batches()
    assert [batch.cursor for batch in whole] == [(epoch, n) for n in range(1, len(whole))] + [(epoch + 1, 0)]
    ranks = [run(rank, world_size, budgets[1], done) for rank in range(world_size)]
    together = [sorted(chain(*map(rows_of, parts))) for parts in zip(*ranks, strict=True)]
    assert together == [rows_of(batch) for batch in whole[done:]]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("done", [0, 1, 4])
def test_workers_do_not_change_the_order(maker, num_workers, done):
    stream = StepStream(RowOrder([memory(23)], seed=1, shuffle_buffer=9), maker(), batch_size=4)
    stream.cursor = (2, done)
    alone = [(rows_of(batch), batch.cursor) for batch in stream]
    shared = [(rows_of(batch), batch.cursor) for batch in load_steps(stream, num_workers)]
    assert shared == alone


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch, buffer=50):
        return [row.address for row in RowOrder([memory(40)], seed, buffer).rows(epoch)]

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(0, 0, buffer=5), order(0, 0, buffer=0)]
    assert len(set(map(tuple, orders))) == len(orders)
    assert orders[-1] == [f"train:{number}" for number in range(1, 41)]
    first_ten = [int(row.split(":")[1]) for row in orders[0][:10]]
    assert max(first_ten) > 20  # a buffer that holds everything reaches everywhere


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=3),
    weights=st.lists(st.sampled_from([0.1, 0.25, 1.0, 1.5, 2.0]), min_size=3, max_size=3),
    epoch=st.integers(0, 2),
)
def test_weights_say_how_often_each_row_is_shown(sizes, weights, epoch):
    names = ["a", "b", "c"][: len(sizes)]
    sources = [memory(size, name, weight) for size, name, weight in zip(sizes, names, weights, strict=False)]
    order = RowOrder(sources, shuffle_buffer=4)
    shown = Counter(row.address for row in order.rows(epoch))
    assert sum(shown.values()) == order.num_rows()
    for source in sources:
        times = [shown[row.address] for row in source.read()]
        assert sum(times) == max(1, round(len(times) * source.weight))
        assert max(times) - min(times) <= 1


def test_file_order_shows_each_row_once():
    order = RowOrder([memory(3, "a", weight=2), memory(2, "b")])
    assert [row.address for row in order.rows(0)] == ["a:1", "a:2", "a:3", "b:1", "b:2"]
    assert order.num_rows() == 5


def test_sources_are_mixed_evenly():
    order = RowOrder([memory(100, "a"), memory(300, "b")], shuffle_buffer=1)
    sources = [row.source for row in order.rows(0)]
    quarters = [sources[start : start + 100].count("a") for start in range(0, 400, 100)]
    assert all(10 <= quarter <= 40 for quarter in quarters)


@pytest.mark.parametrize("others", [[], [memory(10, "other")]])
def test_a_part_of_a_source_is_drawn_afresh_and_evenly(others):
    order = RowOrder([memory(1000, weight=0.2), *others], shuffle_buffer=1)
    parts = [{row.address for row in order.rows(epoch) if row.source == "train"} for epoch in range(3)]
    assert [len(part) for part in parts] == [200, 200, 200]
    assert all(len(one & other) < 100 for one, other in combinations(parts, 2))
    in_first_half = [sum(int(address.split(":")[1]) <= 500 for address in part) for part in parts]
    assert all(70 < count < 130 for count in in_first_half)


def test_a_mixture_needs_lengths():
    source = memory(3)
    source.__dict__["num_rows"] = None
    assert RowOrder([source], shuffle_buffer=2).num_rows() is None
    assert len(list(RowOrder([source], shuffle_buffer=2).rows(0))) == 3
    with pytest.raises(ValueError, match="the hub does not say how many rows 'train' has"):
        list(RowOrder([source, memory(3)], shuffle_buffer=2).rows(0))


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
    assert (rows_of(batch), batch.notes) == (["bad.jsonl:1", "bad.jsonl:3"], {f"dropped/{reason}": 1})
    stream.make_batch = maker(on_bad_row="drop", name_sources=True)
    assert next(iter(stream)).notes == {f"dropped/{reason}/mine": 1}


def test_a_long_prompt_is_cut_or_dropped_and_counted(tmp_path, maker):
    stream = write(tmp_path, GOOD, LONG, LONG)
    stream.make_batch = maker(truncation="prompt_left")
    (batch,) = stream
    assert (batch.num_pairs, batch.notes) == (3, {"truncated/prompt": 2})
    stream.make_batch = maker(truncation="response_right")
    with pytest.warns(
        UserWarning, match=r"dropped bad\.jsonl:2: has \d+ prompt tokens, which leaves no room"
    ) as warned:
        (batch,) = stream
    assert len(warned) == 1
    assert (batch.num_pairs, batch.notes) == (1, {"dropped/prompt_too_long": 2})


def test_a_step_without_pairs_is_still_a_batch(tmp_path, maker):
    stream = write(tmp_path, {**GOOD, "chosen": ""})
    stream.make_batch = maker(on_bad_row="drop")
    (batch,) = stream
    assert batch == ((), {"dropped/empty_response": 1}, (1, 0))


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
