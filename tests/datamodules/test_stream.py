"""The n-th batch of an epoch depends on seed, epoch and n alone; every row comes exactly as often as it should."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from datamodules.options import Source
from datamodules.order import RowOrder
from datamodules.readers import blocks, columns, files, lines
from datamodules.sources import OpenSource, open_sources
from datamodules.stream import StepStream, global_batches, load_steps
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
    return OpenSource(Source(name, weight), rows=[{"n": number} for number in range(num_rows)])


class Batch(NamedTuple):
    """What a step sees, made of nothing but the rows and the cursor."""

    rows: list[str]
    cursor: Cursor


def make_batch(rows, cursor):
    return Batch([row.address for row in rows], cursor)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.4, 1.0, 2.0, 2.5]), min_size=3, max_size=3),
    batch_size=st.integers(1, 8),
    buffer=st.sampled_from([0, 1, 5, 12, 1000]),
    world_size=st.integers(1, 3),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_any_split_over_ranks_and_starts(sizes, weights, batch_size, buffer, world_size, epoch, data):
    sources = [memory(size, name, weight) for size, name, weight in zip(sizes, "abc", weights, strict=False)]
    order = RowOrder(sources, seed=3, shuffle_buffer=buffer)
    assume(order.num_rows)

    def run(rank, world_size, cursor):
        stream = StepStream(order, make_batch, batch_size, rank, world_size)
        stream.cursor = cursor
        return list(stream)

    whole = run(0, 1, Cursor(epoch))
    everything = Counter(row.address for row in order.rows(epoch))
    assert Counter(row for batch in whole for row in batch.rows) == everything
    assert [len(batch.rows) for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)
    assert len(whole) == StepStream(order, make_batch, batch_size).num_batches()
    assert [batch.cursor.batch for batch in whole] == [*range(1, len(whole)), 0]
    assert whole[-1].cursor == Cursor(epoch + 1)
    done = data.draw(st.integers(0, len(whole) - 1), label="done")
    cursor = whole[done - 1].cursor if done else Cursor(epoch)
    saved = Cursor(*json.loads(json.dumps(cursor)))
    ranks = [run(rank, world_size, saved) for rank in range(world_size)]
    for parts, batch in zip(zip(*ranks, strict=True), whole[done:], strict=True):
        assert [part.rows for part in parts] == [batch.rows[rank::world_size] for rank in range(world_size)]


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
def test_workers_do_not_change_the_order(num_workers, done):
    stream = StepStream(RowOrder([memory(23)], seed=1, shuffle_buffer=9), make_batch, batch_size=4)
    stream.cursor = Cursor(2)
    alone = list(stream)
    stream.cursor = alone[done - 1][1] if done else Cursor(2)
    shared = list(load_steps(stream, num_workers))
    assert shared == alone[done:]


def test_workers_share_a_stream_of_the_datasets_library():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"n": number} for number in range(300)])
    sources = open_sources(rows.to_iterable_dataset(num_shards=4), "train")
    stream = StepStream(RowOrder(sources, shuffle_buffer=0), make_batch, batch_size=20)
    alone = list(stream)
    assert len(alone) == 15
    assert list(load_steps(stream, 2)) == alone
    stream.cursor = alone[13][1]
    assert list(load_steps(stream, 2)) == alone[14:]


def test_a_checkpoint_holds_a_cursor(tmp_path, write_rows):
    order = RowOrder(open_sources(str(write_rows("table.csv", [{"n": "1"}] * 9)), "train"), 0, 3)
    cursors = [cursor for _, cursor in global_batches(order, Cursor(), 2)]
    torch.save(list(map(list, cursors)), tmp_path / "saved.pt")
    assert [Cursor(*saved) for saved in torch.load(tmp_path / "saved.pt", weights_only=True)] == cursors


def test_length_is_told_only_if_wanted_and_known():
    stream = StepStream(RowOrder([memory(23)], shuffle_buffer=9), make_batch, batch_size=4)
    assert len(load_steps(stream)) == 6
    with pytest.raises(TypeError, match="the number of rows is not known, or not wanted"):
        len(load_steps(stream, is_length_wanted=False))
    datasets = pytest.importorskip("datasets")
    (source,) = open_sources(datasets.Dataset.from_list([{"n": 1}]).to_iterable_dataset(), "train")
    with pytest.raises(TypeError, match="not known"):
        len(load_steps(StepStream(RowOrder([source]), make_batch, batch_size=4)))


def test_data_that_shrank_are_told():
    with pytest.raises(ValueError, match=r"the data end before Cursor\(epoch=0, batch=5, .*; train changed"):
        next(global_batches(RowOrder([memory(23)], shuffle_buffer=9), Cursor(0, 5, 9, 0, [None]), 4))


def test_no_rows_at_all(tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n  \n")
    source = OpenSource(Source("blank.jsonl", name="mine"))
    with pytest.raises(ValueError, match="no rows in mine"):
        list(StepStream(RowOrder([source]), make_batch, batch_size=8))
