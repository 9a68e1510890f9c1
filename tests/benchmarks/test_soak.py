"""The soak: faults strike when they should, the server is as flaky as it says, and rows are counted."""

import argparse
import contextlib
import http.client
import json
import random
import signal
import sys
import urllib.request

import pytest

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
QUICK = [sys.executable, "-c", "print('data: pairs 3, dropped/empty 2, fill 9%')"]


@pytest.fixture(scope="module")
def soak(load_script):
    return load_script("soak.py")


@pytest.fixture
def attempt(soak, tmp_path):
    place = tmp_path / "checkpoints"
    place.mkdir()

    def make(command=SLEEPER, seconds=0.2, server=None, seed=0):
        return soak.Attempt(command, tmp_path / "log", place, seconds, server, random.Random(seed))

    return make


def ask(url, timeout=5.0):
    body = json.dumps({"items": [{"prompt": "a", "response": "aei bcd"}]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=timeout) as answer:
        return json.load(answer)["scores"]


def test_signals_strike_at_their_moment(soak, attempt):
    assert soak.FAULTS["killed"](attempt())[:2] == (-signal.SIGKILL, True)
    assert soak.FAULTS["told to go"](attempt())[:2] == (-signal.SIGTERM, True)
    assert soak.FAULTS["killed"](attempt(QUICK, seconds=30.0))[:2] == (0, False), "it had ended before"


def test_the_newest_checkpoint_is_damaged_where_an_older_one_is_left(soak, attempt):
    place, found = attempt().checkpoints, set()
    for seed in range(12):
        for name in ("step-1.ckpt", "last.ckpt"):
            (place / name).write_bytes(bytes(100 if seed else name.startswith("step") * 100))
        ended = soak.FAULTS["checkpoint damaged"](attempt(seed=seed, seconds=0.05))
        assert (place / "step-1.ckpt").read_bytes() == bytes(100)
        assert (place / "last.ckpt").read_bytes() != bytes(100)
        found |= {ended.note} if seed else set()
    assert found == {"cut", "emptied", "a bit turned", "overwritten"}
    (place / "step-1.ckpt").unlink()
    (place / "last.ckpt").write_bytes(bytes(100))
    soak.FAULTS["checkpoint damaged"](attempt())
    assert (place / "last.ckpt").read_bytes() == bytes(100), "the only one is left alone"


def test_a_disk_without_room(soak, attempt, tmp_path):
    (attempt().checkpoints / "last.ckpt").write_bytes(bytes(1000))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "Path(sys.argv[1]).write_bytes(bytes(500))\nPath(sys.argv[2]).write_bytes(bytes(900))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "small"), str(tmp_path / "large")]
    ended = soak.FAULTS["disk full"](attempt(command))
    assert ended.status == 1
    assert ended.has_struck
    assert (tmp_path / "small").stat().st_size == 500
    assert "File too large" in (tmp_path / "log").read_text()


def test_rewards_that_are_gone_come_back(soak, attempt):
    with soak.FlakyServer(0, late=0.1, is_flaky=False) as server:
        code = f"import urllib.request as r, time\nwhile True:\n    r.urlopen({server.url!r}, b'{{\"items\": []}}')"
        ended = soak.FAULTS["rewards gone"](attempt([sys.executable, "-c", code], seconds=0.5, server=server))
        assert ended[:2] == (1, True)
        assert ask(server.url) == [3 / 7]


def test_the_server_is_as_flaky_as_it_says(soak):
    with soak.FlakyServer(0, late=0.4, is_flaky=True) as server:
        for _ in range(120):
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert ask(server.url, timeout=0.2)
        assert set(server.counts) >= {"answered", "error 503", "too late", "hung up"}
        assert server.counts["answered"] > 60


def test_examples_and_broken_rows_are_counted(soak, tmp_path):
    tasks = {task.name: task for task in soak.TASKS}
    for name in ("dpo", "reward", "ppo"):
        file = tmp_path / f"{name}.jsonl"
        num_examples = soak.write_rows(tasks[name], file, 7, seed=1)
        assert len(file.read_text().splitlines()) == tasks[name].num_rows + 7
        assert num_examples == tasks[name].num_rows or name == "reward"
        assert num_examples >= tasks[name].num_rows
    assert soak._rows("data: dropped/broken_json 32, dropped/wrong_type 4, pairs 1280, fill 19%") == (1280, 36)
    assert soak._rows("") == (0, 0)


def test_the_last_word_on_rows_counts(soak, tmp_path):
    log = tmp_path / "log"
    log.write_text("data: pairs 3\nerror\ndata: pairs 5, fill 1%\n")
    assert soak._data_line(log) == "data: pairs 5, fill 1%"


@pytest.mark.parametrize(("weights", "lost", "survived"), [("yes", 0, "2"), ("NO", 0, "not all"), ("yes", 3, "2")])
def test_the_report_adds_up(soak, weights, lost, survived):
    row = dict.fromkeys(soak.COLUMNS, 0) | {"algorithm": "dpo", "killed": 2, "same weights": weights, "rows lost": lost}
    told = soak.report([{**row, "problems": []}], argparse.Namespace(seed=0, faults=2))
    assert f"Faults injected: 2. Faults survived: {survived}. Rows lost: {lost}." in told
    assert "| dpo | 0 | 0 | 2 |" in told


@pytest.mark.slow
def test_a_run_is_soaked(soak, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["soak.py", "--faults=2", "--only", "dpo", f"--work={tmp_path}", f"--out={tmp_path}"]
    )
    soak.main()
    assert "Rows lost: 0." in (tmp_path / "soak.md").read_text()
