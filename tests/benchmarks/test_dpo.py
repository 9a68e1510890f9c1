"""The benchmark's own arithmetic: rows, tokens, operations, medians, table. Measuring itself needs TRL."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load(ROOT / "benchmarks" / "dpo.py")


def dialogue(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[number % 2]}: {turn}" for number, turn in enumerate(turns))


def test_rows_are_split_before_the_last_answer(script, tmp_path):
    rows = [
        {"chosen": dialogue("a", "b", "c", "good"), "rejected": dialogue("a", "b", "c", "bad")},
        {"chosen": dialogue("a", "good"), "rejected": dialogue("other", "bad")},
        {"chosen": dialogue("a", ""), "rejected": dialogue("a", "bad")},
        {"chosen": dialogue("a", "same"), "rejected": dialogue("a", "same")},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert list(script.read_rows(file)) == [{"prompt": prompt, "chosen": " good", "rejected": " bad"}]


def test_useful_operations_by_hand(script, monkeypatch):
    monkeypatch.setitem(script.ARCHITECTURES, "hand", (2, 3, 1, 5, 7))
    # body: 3 * (4 * 2 * 2 + 3 * 2 * 5) = 138 multiply-adds a token; head: 2 * 7 = 14 a scored one
    tokens = {"unique": 10, "scored": 4}
    assert script.useful_flops("hand", tokens, live_reference=False) == 2 * 2 * (10 * 138 + 4 * 14)
    assert script.useful_flops("hand", tokens, live_reference=True) == 2 * 3 * (10 * 138 + 4 * 14)


def test_medians_and_ratios(script):
    def run(seconds, peak_mib, real=100):
        return {"seconds": seconds, "steps": 2, "peak_mib": peak_mib, "tokens": {"real": real}}

    runs = {
        script.DEFAULT: [run(8.0, 100), run(10.0, 100), run(90.0, 100)],
        script.CAREFUL: [run(5.0, 200)],
        "fused layers, cached reference": [run(1.0, 30), run(2.0, 20), run(3.0, 25)],
    }
    options = argparse.Namespace(arch="proxy", device="cpu", peak_tflops=1.0)
    default, careful, ours = script.summarise(options, runs)
    assert default["tokens_per_second"] == 10
    assert careful["times_default"] == 2
    assert ours["tokens_per_second"] == 50
    assert (ours["times_default"], ours["times_careful"], ours["memory_of_default"]) == (5, 2.5, 0.25)
    assert ours["seconds_per_step"] == 1
    assert "| fused layers, cached reference | 50.0 | 5.00 | 2.50 | 1.000 | 25 | 0.25 |" in script.table(
        [default, careful, ours], "cpu"
    )
    with pytest.raises(ValueError, match="on the same tokens"):
        script.summarise(options, {**runs, script.CAREFUL: [run(5.0, 200, real=101)]})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_meter_sees_the_peak_and_leaves_the_warm_up_out():
    meter = load(ROOT / "benchmarks" / "sides" / "meter.py").Meter("cpu", warmup=1)
    before = bytearray(300 * 2**20)
    del before
    meter.begin()
    sum(range(3_000_000))
    meter.step()
    block = bytearray(b"x") * (100 * 2**20)
    del block
    meter.step()
    result = meter.result()
    assert result["steps"] == 1
    assert 95 < result["peak_mib"] < 140
    assert 0 < result["seconds"] < 1
