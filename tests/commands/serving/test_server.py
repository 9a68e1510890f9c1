"""The server as a whole: who may ask it, and how it ends."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest

from datamodules.sources import Row
from lit_rlhf.commands.serving import server as module
from lit_rlhf.commands.serving.scores.handler import ScoreHandler, ScoreServer, serve_scores
from lit_rlhf.commands.serving.server import Settings, read_settings
from lit_rlhf.rewards.http import HttpReward

ITEM = {"prompt": "a", "response": " b"}


def settings(*words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return read_settings(parser.parse_args([*words]), "some/model")


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("LIT_RLHF_TOKEN", raising=False)


def test_settings_of_the_command_line(tmp_path, monkeypatch):
    assert settings() == Settings("some/model")
    words = ("--host", "localhost", "--port", "0", "--timeout", "2", "--max_body", "3", "--max_items", "4")
    assert settings(*words) == Settings("some/model", "localhost", 0, None, 2.0, 3, 4)
    file = tmp_path / "token"
    file.write_text(" from-file\n")
    monkeypatch.setenv("LIT_RLHF_TOKEN", "from-variable")
    assert settings("--host", "0.0.0.0").token == "from-variable"
    assert settings("--token_file", str(file)).token == "from-file"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_need_a_token(host):
    with pytest.raises(ValueError, match=f"--host={host} is open to other machines: set a token by --token_file"):
        settings("--host", host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3", "::1"])
def test_this_machine_needs_none(host):
    assert settings("--host", host).token is None


def test_a_name_with_one_address_that_others_reach_needs_a_token(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    with pytest.raises(ValueError, match="is open to other machines"):
        settings("--host", "two-faced")


@pytest.mark.parametrize("token", ["", "two words", "umlaut-\xe4", "line\nbreak"])
def test_a_token_that_is_none(tmp_path, token):
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")
    with pytest.raises(ValueError, match=r"--token_file=.*token must hold one token"):
        settings("--token_file", str(file))


@pytest.mark.parametrize("words", ["--timeout 0", "--max_body 0", "--max_items 0", "--port 65536", "--port -1"])
def test_numbers_out_of_range(words):
    with pytest.raises(ValueError, match=words.split()[0]):
        settings(*words.split())


def test_an_address_that_is_taken_or_none(length_scorer):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen at --host=127.0.0.1 --port={port}: "):
            ScoreServer(length_scorer, Settings("mine", port=port))
    with pytest.raises(ValueError, match=r"--host=no\.such\.host\.invalid is no address"):
        settings("--host", "no.such.host.invalid")


def test_the_url_is_the_real_one(score_server):
    server = score_server()
    assert server.url == f"http://127.0.0.1:{server.server_port}"
    assert HttpReward(server.url).score([ITEM]) == [2.0]


def test_stopping_finishes_what_runs_and_takes_no_more(score_server, ask, length_scorer):
    server = score_server()
    length_scorer.go.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, server, body=ITEM)
        assert length_scorer.begun.wait(5)
        stopping = pool.submit(server.stop)
        time.sleep(0.1)
        assert not stopping.done()
        with pytest.raises(ConnectionRefusedError):
            ask(server, body=ITEM)
        length_scorer.go.set()
        assert running.result(5)[:1] == (200,)
        stopping.result(5)
    assert server.num_requests == 1
    assert not server.worker.is_alive()


def test_stopping_waits_until_an_answer_is_written(score_server, ask, monkeypatch):
    written, send = Event(), ScoreHandler._send

    def slowly(self, *args):
        time.sleep(0.2)
        send(self, *args)
        written.set()

    monkeypatch.setattr(ScoreHandler, "_send", slowly)
    server = score_server()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, server, body=ITEM)
        while not server.num_requests:
            time.sleep(0.001)
        server.stop()
        assert written.is_set()
        assert running.result(5)[0] == 200


def test_idle_connections_do_not_keep_it_from_stopping(score_server):
    server = score_server()
    with socket.create_connection(("127.0.0.1", server.server_port)):
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 2


def test_more_connections_than_it_can_hold_are_closed(score_server, ask, monkeypatch):
    monkeypatch.setattr(module, "_MAX_CONNECTIONS", 2)
    server = score_server(timeout=5)
    address = "127.0.0.1", server.server_port
    with socket.create_connection(address), socket.create_connection(address):
        time.sleep(0.1)
        with socket.create_connection(address, timeout=5) as third:
            assert third.recv(1) == b""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert ask(server, body=ITEM)[0] == 200
            return
        except ConnectionError:
            time.sleep(0.01)
    pytest.fail("the slots did not come back")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_runs_is_answered(length_scorer, capsys, number):
    port = free_port()
    length_scorer.go.clear()

    def client():
        score = HttpReward(f"http://127.0.0.1:{port}", backoff=0.05, retries=5).score
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(score, [ITEM])
            assert length_scorer.begun.wait(5)
            os.kill(os.getpid(), number)
            time.sleep(0.1)
            length_scorer.go.set()
            return running.result(5)

    before = signal.getsignal(number)
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(client)
        serve_scores(length_scorer, Settings("mine", port=port))
        assert answered.result(5) == [2.0]
    said = capsys.readouterr()
    assert said.out == f"scoring at http://127.0.0.1:{port} (POST /score, GET /health, GET /schema)\n"
    assert said.err == "stopped after 1 requests\n"
    assert signal.getsignal(number) is before


def test_many_clients_of_a_real_model_get_what_the_command_line_gives(reward_folders, scorer_of):
    items = [{"prompt": "What is the capital of France?", "response": " Paris" * number} for number in range(1, 25)]
    items += [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}]
    items += [{"prompt_ids": [1, 50, 60], "response_ids": [70, 2]}]
    scorer = scorer_of(reward_folders())
    expected = [one.scores[0] for one in scorer([Row("", "", item) for item in items[:-1]])]
    server = ScoreServer(scorer, Settings("mine", port=0))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    client = HttpReward(server.url, batch_size=3, retries=0)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(client.score, [items, items[::-1], *([item] for item in items)]))
    assert answers[0][:-1] == pytest.approx(expected, abs=1e-5)
    assert answers[1][::-1] == pytest.approx(answers[0], abs=1e-5)
    assert [score for (score,) in answers[2:]] == pytest.approx(answers[0], abs=1e-5)
    with pytest.raises(ValueError, match=r"422 .*: items\[0\]: .*empty response"):
        client.score([{"prompt": "a", "response": ""}])
    with pytest.raises(ValueError, match=r"422 .*: items\[0\]: token id 99999 is not one of"):
        client.score([{"prompt_ids": [1], "response_ids": [99999]}])
    with pytest.raises(ValueError, match=r"4\d\d .*: .*items\[0\]"):
        client.score([{"prompt": "a", "response": "\ud800"}])
    scorer.model.score.weight.fill_(float("nan"))
    with pytest.raises(ConnectionError, match=r"500 .*: items\[0\]: the model gives it the score \[nan\]"):
        client.score(items[:1])
    server.stop()


@pytest.mark.slow
def test_a_process_of_its_own(reward_folders):
    words = ["score", str(reward_folders()), "--serve", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "lit_rlhf", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        url = process.stdout.readline().split()[2]
        assert len(HttpReward(url).score([ITEM] * 100)) == 100
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.splitlines()[-1] == "stopped after 2 requests"
    assert "Traceback" not in said
