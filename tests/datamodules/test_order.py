"""The order of rows depends on seed and epoch alone, mixes well, and goes on exactly from the start of any window."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from itertools import chain, combinations
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import order as order_module
from datamodules.options import Source
from datamodules.order import RowOrder
from datamodules.readers import blocks, columns, files, lines
from datamodules.sources import OpenSource, open_sources

ROOT = Path(__file__).parents[2]


def memory(num_rows, name="train", weight=1.0):
    return OpenSource(Source(name, weight), rows=[{"n": number} for number in range(num_rows)])


def addresses(rows):
    return [row.address for row in rows]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (blocks, files, lines, columns):
        monkeypatch.setattr(module, "BLOCK_BYTES", 40)


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch, buffer=50):
        return addresses(RowOrder([memory(40)], seed, buffer).rows(epoch))

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(0, 0, buffer=5), order(0, 0, buffer=0)]
    assert len(set(map(tuple, orders))) == len(orders)
    assert all(sorted(one) == sorted(orders[0]) for one in orders)
    assert orders[-1] == [f"train:{number}" for number in range(1, 41)]
    first_ten = [int(row.split(":")[1]) for row in orders[0][:10]]
    assert max(first_ten) > 20  # a buffer that holds everything reaches everywhere


@pytest.mark.parametrize("buffer", [0, 4, 11, 1000])
def test_every_window_of_every_kind_begins_anywhere(write_rows, kind, buffer):
    rows = [{"n": f"{number}"} for number in range(31)]
    path = write_rows(kind, rows)
    like = [str(path), Source(str(path), 1.5, limit=13), rows[:9]]

    def order():
        return RowOrder(open_sources(like, "train"), 1, buffer)

    windows = list(order().windows(2))
    shown = addresses(chain.from_iterable(window.rows for window in windows))
    assert len(shown) == order().num_rows
    assert set(Counter(shown).values()) <= {1, 2, 3}
    assert {row.decode()["n"] for window in windows for row in window.rows} == {row["n"] for row in rows}
    for number, window in enumerate(windows):
        assert window.number == number
        places = json.loads(json.dumps(window.places))
        again = list(order().windows(2, number, places))
        assert [addresses(one.rows) for one in again] == [addresses(one.rows) for one in windows[number:]]
        assert [one.places for one in again][1:] == [one.places for one in windows[number + 1 :]]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=3),
    weights=st.lists(st.sampled_from([0.1, 0.25, 1.0, 1.5, 2.0]), min_size=3, max_size=3),
    buffer=st.sampled_from([1, 4, 1000]),
)
def test_weights_say_how_often_each_row_is_shown(sizes, weights, buffer):
    names = ["a", "b", "c"][: len(sizes)]
    sources = [memory(size, name, weight) for size, name, weight in zip(sizes, names, weights, strict=False)]
    order = RowOrder(sources, shuffle_buffer=buffer)
    for epoch in range(2):
        shown = Counter(addresses(order.rows(epoch)))
        assert sum(shown.values()) == order.num_rows
        for source in sources:
            times = [shown[row.address] for row in source.read()]
            assert int(source.weight) <= min(times)
            assert max(times) <= -(-source.weight // 1)
            blocks_of_16 = -(-len(times) // 16)
            assert abs(sum(times) - len(times) * source.weight) < blocks_of_16


def test_file_order_shows_each_row_once():
    order = RowOrder([memory(3, "a", weight=2), memory(2, "b")])
    assert addresses(order.rows(0)) == ["a:1", "a:2", "a:3", "b:1", "b:2"]
    assert order.num_rows == 5


def test_sources_are_mixed_evenly_in_every_tenth_of_an_epoch(tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"n": number}) + "\n" for number in range(6000)))
    (tmp_path / "d.csv").write_text("n\n" + "".join(f"{number}\n" for number in range(8000)))
    weighted = [Source("c.jsonl", weight=2), Source("d.csv", weight=0.5)]
    sources = [*open_sources(weighted, "train"), memory(4000, "a"), memory(12_000, "b", 0.25)]
    shown = [row.source for row in RowOrder(sources, shuffle_buffer=500).rows(0)]
    step = -(-len(shown) // 10)
    whole = Counter(shown)
    assert whole["a"] == 4000
    assert whole["c.jsonl"] == 12_000
    assert abs(whole["b"] - 3000) < 60
    assert abs(whole["d.csv"] - 4000) < 100
    for start in range(0, len(shown), step):
        tenth = Counter(shown[start : start + step])
        for name, count in whole.items():
            assert abs(tenth[name] * 10 - count) < 0.2 * count


def test_a_part_of_a_source_is_drawn_afresh_and_evenly():
    order = RowOrder([memory(1000, weight=0.2), memory(10, "other")], shuffle_buffer=50)
    parts = [{row.address for row in order.rows(epoch) if row.source == "train"} for epoch in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert 180 < len(parts[0]) < 220
    assert all(len(one & other) < 100 for one, other in combinations(parts, 2))
    in_first_half = [sum(int(address.split(":")[1]) <= 500 for address in part) for part in parts]
    assert all(70 < count < 130 for count in in_first_half)


@pytest.mark.parametrize("name", ["sorted.jsonl", "memory"])
def test_rows_of_a_file_that_is_sorted_are_mixed(tmp_path, monkeypatch, name):
    rows = [{"class": number * 4 // 20_000} for number in range(20_000)]
    (tmp_path / "sorted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(lines, "BLOCK_BYTES", 400)
    order = RowOrder(open_sources(rows if name == "memory" else name, "train"), shuffle_buffer=4000)
    classes = [row.decode()["class"] for row in order.rows(0)]
    steps = [Counter(classes[start : start + 100]) for start in range(0, 20_000, 100)]
    assert all(len(step) == 4 for step in steps)
    assert all(min(step.values()) >= 5 for step in steps)


def test_a_mixture_with_a_stream_of_unknown_length():
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_list([{"n": number} for number in range(600)]).to_iterable_dataset()
    order = RowOrder(open_sources([stream, [{"n": 0}] * 2000], "train"), shuffle_buffer=100)
    assert order.num_rows is None
    shown = addresses(order.rows(0))
    assert sorted(shown) == sorted({f"train[0]:{n}" for n in range(1, 601)} | {f"train[1]:{n}" for n in range(1, 2001)})
    assert shown[:300].count("train[0]:1") <= 1
    assert any(row.startswith("train[0]") for row in shown[:1500])


def test_a_window_of_huge_rows_is_cut_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(order_module, "_WINDOW_BYTES", 500)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": "x" * 90}) + "\n" for _ in range(40)))
    windows = list(RowOrder(open_sources("a.jsonl", "train"), shuffle_buffer=100).windows(0))
    assert all(len(window.rows) <= 6 for window in windows)
    assert sum(len(window.rows) for window in windows) == 40


def test_places_of_other_data_are_refused():
    with pytest.raises(ValueError, match="the position holds 2 places, but the data have 1 lanes"):
        next(RowOrder([memory(3)], 0, 5).windows(0, 1, [[0, 1, 3]] * 2))


def test_the_last_window_is_not_a_scrap():
    def sizes(num_rows):
        return [len(window.rows) for window in RowOrder([memory(num_rows)], shuffle_buffer=160).windows(0)]

    assert sizes(480) == [160, 160, 160]
    assert sizes(480 + 64) == [160, 160, 224]
    assert sizes(480 + 96) == [160, 160, 160, 96]


def test_a_wrong_guess_of_what_is_left_does_not_make_a_window_endless(monkeypatch):
    source = memory(1600)
    monkeypatch.setattr(source.readers[0], "size", lambda unit, place=None: 0.0)
    assert max(len(window.rows) for window in RowOrder([source], shuffle_buffer=160).windows(0)) == 240


READ = """
import sys
from datamodules.order import RowOrder
from datamodules.sources import open_sources
def peak():
    lines = open("/proc/self/status").read().splitlines()  # `getrusage` tells the peak of the parent too
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10
if not sys.argv[1].endswith(".jsonl"):
    import pyarrow.parquet
order = RowOrder(open_sources(sys.argv[1], "train"), 0, 1000)
next(order.rows(0)).decode()
before = peak()
assert order.num_rows == int(sys.argv[2]) == sum(1 for _ in order.rows(0))
print(peak() - before)
"""


@pytest.mark.parametrize(
    "kind", ["lines.jsonl", "packed.jsonl.gz", "array.json", "table.csv", "one.parquet", "stream.arrow"]
)
@pytest.mark.parametrize("num_rows", [60_000, pytest.param(600_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_file(tmp_path, write_rows, kind, num_rows):
    row = {"prompt": "p", "chosen": "c", "rejected": "r"}
    rng = random.Random(0)
    rows = [row | {"prompt": rng.randbytes(500).hex()} for _ in range(num_rows)]
    if kind == "one.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), kind, row_group_size=num_rows)
    else:
        write_rows(kind, rows)
    command = [sys.executable, "-c", READ, kind, str(num_rows)]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50, f"{kind}: {num_rows / 1000:.0f} MB of rows"
