"""The benchmark of the data pipeline: its rows, its counts, its clock, its medians. The whole of it needs TRL."""

import argparse
import csv
import json
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from pyarrow import OSFile, ipc, parquet
from transformers import AutoTokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    """The folders that the scripts see when they are run as such."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS / "sides"))
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def data(_scripts):
    return import_module("data")


@pytest.fixture(scope="module")
def made(_scripts, tmp_path_factory):
    """Forty rows of each form, and a tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    rows = import_module("data_rows")
    for form in rows.FORMS:
        rows.make_rows({"form": form, "num_rows": 40, "file": str(folder / f"{form}.jsonl")})
    job = {"vocabulary": 1000, "file": str(folder / "text.jsonl"), "folder": str(folder / "tokenizer")}
    assert rows.make_tokenizer(job) == {"vocabulary": 1000}
    return folder


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def job(made, form, **more):
    places = {"file": str(made / f"{form}.jsonl"), "tokenizer": str(made / "tokenizer")}
    return {**places, "batch_size": 4, "streaming": True, **more}


def test_rows_are_the_same_every_time_and_no_two_alike(made, tmp_path):
    rows = import_module("data_rows")
    again = tmp_path / "again.jsonl"
    said = rows.make_rows({"form": "text", "num_rows": 40, "file": str(again)})
    assert again.read_bytes() == (made / "text.jsonl").read_bytes()
    assert said == {"num_rows": 40, "num_bytes": again.stat().st_size}
    assert len(set(again.read_text().splitlines())) == 40
    dialogues = read(again)
    assert all(row["chosen"] != row["rejected"] and row["chosen"].startswith("\n\nHuman: ") for row in dialogues)
    answers = [len(row["chosen"][-1]["content"]) for row in read(made / "conversation.jsonl")]
    assert 200 < statistics.median(answers) < 600


def test_a_file_is_as_large_as_was_asked(tmp_path):
    file = tmp_path / "rows.jsonl"
    said = import_module("data_rows").make_rows({"form": "conversation", "num_bytes": 50_000, "file": str(file)})
    assert 50_000 <= said["num_bytes"] == file.stat().st_size < 80_000
    assert said["num_rows"] == len(read(file))


def test_real_rows_that_not_every_side_keeps_are_left_out(tmp_path):
    pairs = [("\n\nAssistant: a", "\n\nAssistant: b"), ("\n\nAssistant: a", "\n\nAssistant: "), ("same", "same")]
    file, out = tmp_path / "real.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"chosen": one, "rejected": other}) + "\n" for one, other in pairs))
    assert import_module("data_rows").make_rows({"rows": str(file), "file": str(out)})["num_rows"] == 1


def test_every_type_of_file_holds_the_same_rows(made, tmp_path):
    rows = import_module("data_rows")
    for suffix in import_module("data").SUFFIXES:
        converted = {"file": str(made / "text.jsonl"), "suffix": suffix, "out": str(tmp_path / f"rows{suffix}")}
        assert rows.convert(converted)["num_bytes"] > 1000
    expected = read(made / "text.jsonl")
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == expected
    with OSFile(str(tmp_path / "rows.arrow")) as file:
        assert ipc.open_stream(file).read_all().to_pylist() == expected
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == expected
    assert json.loads((tmp_path / "rows.json").read_text()) == expected


@pytest.mark.parametrize("form", ["text", "conversation"])
@pytest.mark.parametrize("side", ["data_lit_rlhf", "data_datasets"])
def test_tokens_are_those_of_the_tokenizer(made, form, side, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(made / "tokenizer")
    expected = 0
    for row in read(made / f"{form}.jsonl"):
        for key in ("chosen", "rejected"):
            if form == "text":
                expected += len(tokenizer(row[key] + "</s>").input_ids)
            else:
                expected += len(tokenizer.apply_chat_template(row["prompt"] + row[key])["input_ids"])
    run = import_module(side).throughput(job(made, form))
    assert (run["num_tokens"], run["num_pairs"]) == (expected, 40)


def test_resuming_is_checked_for_the_right_rows(made):
    ours = import_module("data_lit_rlhf")
    after_six, after_eight = (ours.place(job(made, "text", fraction=part)) for part in (0.6, 0.8))
    assert not set(after_six["next_rows"]) & set(after_eight["next_rows"])
    plan = job(made, "text", **json.loads(json.dumps(after_six)))
    assert ours.first_batch(plan)["is_right"] is True
    assert ours.first_batch({**plan, "state": after_eight["state"]})["is_right"] is False
    assert ours.first_batch(job(made, "text"))["is_right"] is None


def test_tokens_may_differ_by_the_ends_of_sequences_alone(data):
    def runs(tokens, pairs=10):
        return {"one": [{"num_tokens": 1000, "num_pairs": 10}], "two": [{"num_tokens": tokens, "num_pairs": pairs}]}

    data.check_tokens(runs(1040))
    for wrong in (runs(1041), runs(959), runs(1000, pairs=9)):
        with pytest.raises(ValueError, match=r"same tokens.*two"):
            data.check_tokens(wrong)


def test_medians_and_comparisons(data):
    def run(seconds, is_right=True):
        return {"seconds": seconds, "peak_mib": 10, "is_right": is_right}

    tasks = [data.Task("ours", "lit_rlhf", "first_batch", {}), data.Task("theirs", "trl", "first_batch", {}, scale=32)]
    columns = {**data.WAITING, "right": ("is_right", "{}")}
    question = data.Question("First batch", tasks, columns)
    runs = {"ours": [run(1), run(2), run(9)], "theirs": [run(3), run(3, is_right=False), run(3)]}
    ours, theirs = data.summarise(question, runs)
    assert (ours["seconds"], ours["times"], ours["is_right"]) == (2, 1, True)
    assert (theirs["seconds"], theirs["times"], theirs["is_right"]) == (96, 48, False)
    assert data.table(question, [ours, theirs]).splitlines()[3] == "| theirs | 96.00 | 48.00 |  |  |  | 10 | False |"


def test_throughput_is_compared_with_the_first_line(data):
    def run(cpu_seconds):
        return {"cpu_seconds": cpu_seconds, "num_tokens": 1000, "num_pairs": 10}

    tasks = [data.Task(name, name, "throughput", {"megabytes": 2}) for name in ("trl", "lit_rlhf")]
    columns = {"x TRL": ("times", "{:.2f}"), "MB": ("megabytes", "{}")}
    question = data.Question("Throughput", tasks, columns)
    theirs, ours = data.summarise(question, {"trl": [run(4), run(5), run(6)], "lit_rlhf": [run(2)]})
    assert (theirs["tokens_per_second"], ours["tokens_per_second"]) == (200, 500)
    assert (theirs["times"], ours["times"], ours["megabytes"]) == (1, 2.5, 2)


def test_every_question_is_asked_of_scripts_that_know_it(data, tmp_path, monkeypatch):
    made = []

    def run(self, side, what, job):
        made.append((side, what))
        if what == "convert":
            Path(job["out"]).write_text("")
        return {"num_rows": 10, "num_bytes": 1000, "next_rows": []}

    monkeypatch.setattr(data.Bench, "run", run)
    options = argparse.Namespace(rows=None, size=1000, pairs=10, batch_size=2, fraction=0.9, seconds=1.0)
    bench = data.Bench(options, tmp_path)
    questions = [question for ask in data.QUESTIONS.values() for question in ask(bench)]
    assert len(questions) == 6
    made += [(task.side, task.what) for question in questions for task in question.tasks]
    for side, what in set(made):
        assert f'"{what}": ' in (BENCHMARKS / "sides" / f"data_{side}.py").read_text().splitlines()[-1]


def test_a_failing_side_is_named_with_what_it_said(data, tmp_path, monkeypatch):
    (tmp_path / "sides").mkdir()
    script = "import json, os, sys\njson.dump({'cores': len(os.sched_getaffinity(0))}, open(sys.argv[3], 'w'))"
    (tmp_path / "sides" / "data_good.py").write_text(script)
    (tmp_path / "sides" / "data_bad.py").write_text("raise SystemExit('no such thing')")
    monkeypatch.setattr(data, "HERE", tmp_path)
    bench = data.Bench(argparse.Namespace(), tmp_path)
    assert bench.run("good", "throughput", {}) == {"cores": 1}
    with pytest.raises(RuntimeError, match=r"data_bad.py throughput(.|\n)*no such thing"):
        bench.run("bad", "throughput", {})


def test_the_clock_tells_work_from_waiting():
    meter = import_module("data_meter")
    with meter.Clock() as waiting:
        time.sleep(0.2)
    with meter.Clock() as working:
        sum(range(5_000_000))
    assert waiting.seconds >= 0.2
    assert waiting.cpu_seconds < 0.1
    assert 0.01 < working.cpu_seconds <= working.seconds + 0.02
    assert 0.2 < meter.seconds_alive() < 10_000


def test_memory_is_seen_at_its_peak(tmp_path):
    meter = import_module("data_meter")
    memory = meter.Memory()
    block = bytearray(b"x") * int((200 + max(memory.peak_mib(), 0)) * 2**20)
    held = memory.now_mib()
    del block
    assert held > 190
    assert memory.peak_mib() > held - 2  # the system counts pages in lots
    assert memory.now_mib() < held - 150
    file = tmp_path / "file"
    file.write_bytes(b"rows")
    meter.forget(file)
    assert file.read_bytes() == b"rows"
