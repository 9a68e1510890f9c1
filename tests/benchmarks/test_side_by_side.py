"""What the training benchmarks share: medians, ratios, table, clock and memory. Measuring TRL itself needs TRL."""

import argparse
import sys

import pytest


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("side_by_side.py")


@pytest.fixture
def comparison(script):
    settings = {"as it comes": {"cost": 1}, "with care": {"cost": 2}, "ours": {"cost": 3}}
    return script.Comparison("xy", "X and Y", settings, "as it comes", "with care", lambda arch, tokens, setting: 1e12)


def run(seconds, peak_mib, **tokens):
    return {"seconds": seconds, "steps": 2, "peak_mib": peak_mib, "tokens": tokens or {"real": 100}, "versions": {}}


@pytest.fixture
def runs():
    return {
        "as it comes": [run(8.0, 100), run(10.0, 100), run(90.0, 100)],
        "with care": [run(5.0, 200)],
        "ours": [run(1.0, 30), run(2.0, 20), run(3.0, 25)],
    }


def test_medians_and_ratios(script, comparison, runs):
    options = argparse.Namespace(arch="proxy", device="cpu")
    default, careful, ours = script.summarise(comparison, options, runs)
    assert default["tokens_per_second"] == 10
    assert careful["times_default"] == 2
    assert ours["tokens_per_second"] == 50
    assert (ours["times_default"], ours["times_careful"], ours["memory_of_default"]) == (5, 2.5, 0.25)
    assert ours["seconds_per_step"] == 1
    table = script.table(comparison, [default, careful, ours], "cpu")
    assert table.startswith("| X and Y | tokens / CPU s | x default |")
    assert "| ours | 50.0 | 5.00 | 2.50 | 1.000 | 25 | 0.25 |" in table
    with pytest.raises(ValueError, match="on the same tokens"):
        script.summarise(comparison, options, {**runs, "with care": [run(5.0, 200, real=101)]})


def test_without_trl_there_are_no_ratios(script, comparison, runs):
    (alone,) = script.summarise(comparison, argparse.Namespace(device="cpu"), {"ours": runs["ours"]})
    assert alone["times_default"] is alone["times_careful"] is alone["memory_of_default"] is None
    assert "| ours | 50.0 |  |  | 1.000 | 25 |  |" in script.table(comparison, [alone], "cpu")


def test_a_gpu_is_held_against_its_peak(script, comparison, runs):
    asked = []

    def useful_flops(*told):
        asked.append(told)
        return 3e12

    tokens = {"real": 100, "unique": 70}  # only our side counts more than one kind
    options = argparse.Namespace(arch="proxy", device="cuda", peak_tflops=6.0)
    runs = {"as it comes": runs["as it comes"], "ours": [run(2.0, 20, **tokens)]}
    default, ours = script.summarise(comparison._replace(useful_flops=useful_flops), options, runs)
    assert (default["mfu"], ours["mfu"]) == (0.05, 0.25)
    assert asked == [("proxy", tokens, {"cost": 1}), ("proxy", tokens, {"cost": 3})]
    assert script.table(comparison, [ours], "cuda").splitlines()[0].endswith("| MFU |")


def test_results_are_called_after_what_was_measured(script, comparison, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "hardware", lambda device: "a machine")
    monkeypatch.setattr(sys, "argv", ["xy.py", "--trl-python", "p", "--data", "hh.jsonl", "--out", str(tmp_path)])
    options = script.parse(comparison)
    assert options.work.name == "benchmark_xy"
    written = script.write(comparison, options, runs, script.summarise(comparison, options, runs))
    assert written == tmp_path / "xy_proxy_cpu_float32_none.md"
    assert written.read_text().startswith("# X and Y beside TRL\n\n| X and Y |")
    assert "- data: hh.jsonl" in written.read_text()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "care", "our"])
    assert list(script.chosen(comparison, script.parse(comparison))) == ["with care", "ours"]


def test_earlier_runs_stand_beside_new_ones(script, comparison, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "hardware", lambda device: "a machine")
    monkeypatch.setattr(sys, "argv", ["xy.py", "--trl-python", "p", "--data", "hh.jsonl", "--out", str(tmp_path)])
    options = script.parse(comparison)
    script.write(comparison, options, runs, script.summarise(comparison, options, runs))
    earlier = ["--earlier", str(tmp_path / "xy_proxy_cpu_float32_none.json")]
    monkeypatch.setattr(sys, "argv", [*sys.argv, *earlier, "--only", "ours", "--repeats", "1"])
    monkeypatch.setattr(script, "measure", lambda *told: run(0.5, 10))
    script.compare(comparison, script.parse(comparison), tmp_path / "plan.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("| as it comes | 10.0 | 1.00 |")
    assert lines[5].startswith("| ours | 200.0 | 20.00 |")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "7"])
    with pytest.raises(ValueError, match="steps is 5 there, and 7 here"):
        script.compare(comparison, script.parse(comparison), tmp_path / "plan.json")


def test_a_failing_side_is_named_with_what_it_said(script, tmp_path, monkeypatch):
    (tmp_path / "sides").mkdir()
    (tmp_path / "sides" / "xy_trl.py").write_text("raise SystemExit('no such thing')")
    good = "import json, os, sys\njson.dump(os.environ['OMP_NUM_THREADS'], open(sys.argv[3], 'w'))"
    (tmp_path / "sides" / "xy_lit_rlhf.py").write_text(good)
    monkeypatch.setattr(script, "HERE", tmp_path)
    plan = tmp_path / "plan.json"
    plan.write_text('{"device": "cpu"}')
    assert script.measure(plan, "xy", {"side": "lit_rlhf"}, "none") == "1"
    with pytest.raises(RuntimeError, match=r"xy_trl.py(.|\n)*no such thing"):
        script.measure(plan, "xy", {"side": "trl"}, sys.executable)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_meter_sees_the_peak_and_leaves_the_warm_up_out(load_script):
    meter = load_script("sides/meter.py").Meter("cpu", warmup=1)
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
