"""The client of a reward server: batches, retries, and answers that cannot be trusted."""

from __future__ import annotations

import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from lit_rlhf.rewards.http import HttpReward
from lit_rlhf.rewards.reward import Sample

ITEMS = [{"prompt": "a", "response": "b" * length} for length in range(5)]


class Scripted(BaseHTTPRequestHandler):
    """Answers as its server's script says: (status, body) each, the last for ever; a number waits, None hangs up."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, dict(self.headers)))
        script = self.server.script
        step = script.pop(0) if len(script) > 1 else script[0]
        if step is None:
            self.connection.close()
            return
        if isinstance(step, float):
            Event().wait(step)
            step = 200, b"{}"
        status, answer, *headers = step
        answer = answer(body) if callable(answer) else answer
        self.send_response(status)
        for name, value in [*(headers or []), ("Content-Length", str(len(answer) + 5 * (status == 299)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        self.server.asked.append((self.path, None, dict(self.headers)))
        self.send_error(404)

    def log_message(self, *args):
        pass


def lengths(body):
    return json.dumps({"scores": [len(item["response"]) for item in body["items"]]}).encode()


SCORES = 200, lengths
BUSY = 503, b'{"error": {"message": "too many requests wait"}}'


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.daemon_threads = True
    server.asked, server.script = [], [SCORES]
    server.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("LIT_RLHF_TOKEN", raising=False)


@pytest.fixture
def naps(monkeypatch):
    naps = []
    monkeypatch.setattr("lit_rlhf.rewards.http.time.sleep", naps.append)
    return naps


def test_items_go_in_batches_and_scores_keep_their_order(server):
    scores = HttpReward(server.url, batch_size=2, normalise=True).score(ITEMS)
    assert scores == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert all(type(score) is float for score in scores)
    assert [path for path, _, _ in server.asked] == ["/score"] * 3
    assert [body["items"] for _, body, _ in server.asked] == [ITEMS[:2], ITEMS[2:4], ITEMS[4:]]
    assert all(body["normalise"] for _, body, _ in server.asked)
    assert HttpReward(server.url).score([]) == []
    assert len(server.asked) == 3


def test_samples_are_sent_as_text_or_as_a_conversation(server):
    chat = ({"role": "user", "content": "Hi"},)
    assert HttpReward(server.url)([Sample("a", "bb"), Sample("<user>Hi", "c", messages=chat)]) == [2.0, 1.0]
    assert server.asked[0][1] == {
        "items": [{"prompt": "a", "response": "bb"}, {"prompt": list(chat), "response": "c"}],
        "normalise": False,
    }


def test_a_path_of_ones_own_is_kept(server):
    HttpReward(f"{server.url}/models/one/score").score(ITEMS)
    HttpReward(f"{server.url}/").score(ITEMS)
    assert [path for path, _, _ in server.asked] == ["/models/one/score", "/score"]


def test_a_token_is_sent_and_never_shown(server, monkeypatch):
    HttpReward(server.url).score(ITEMS)
    HttpReward(server.url, token="secret").score(ITEMS)
    monkeypatch.setenv("LIT_RLHF_TOKEN", "other")
    HttpReward(server.url).score(ITEMS)
    assert [headers.get("Authorization") for _, _, headers in server.asked] == [None, "Bearer secret", "Bearer other"]
    server.script = [(401, b"{}")]
    with pytest.raises(ValueError, match="401") as refused:
        HttpReward(server.url, token="secret").score(ITEMS)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("failure", [BUSY, (500, b"oops"), (429, b""), None, (299, b"{")])
def test_what_may_pass_is_asked_again(server, naps, failure):
    server.script = [failure, failure, SCORES]
    assert HttpReward(server.url, backoff=0.5).score(ITEMS) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert naps == [0.5, 1.0]


@pytest.mark.parametrize(("failure", "said"), [(BUSY, "503 .*too many requests wait"), (None, "."), (0.3, "timed out")])
def test_after_the_last_retry_it_says_where_and_what_came_back(server, naps, failure, said):
    server.script = [failure]
    with pytest.raises(ConnectionError, match=rf"{server.url}/score gave no scores, asked 3 times; at last: .*{said}"):
        HttpReward(server.url, retries=2, timeout=5 if failure != 0.3 else 0.05).score(ITEMS)
    assert len(server.asked) == 3
    assert naps == [0.5, 1.0]


def test_nobody_is_there(naps):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=rf"{url}/score gave no scores, asked 4 times; at last: .*refused"):
        HttpReward(url).score(ITEMS)
    assert naps == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_is_final(server, naps, status):
    server.script = [(status, b'{"error": {"message": "items[3]: no"}}')]
    with pytest.raises(ValueError, match=rf"{server.url}/score refused the request: {status} .*: items\[3\]: no"):
        HttpReward(server.url).score(ITEMS)
    assert len(server.asked) == 1
    assert naps == []


def test_it_follows_nobody_elsewhere(server):
    server.script = [(302, b"", ("Location", f"{server.url}/elsewhere"))]
    with pytest.raises(ValueError, match="302"):
        HttpReward(server.url, token="secret").score(ITEMS)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>", 'no JSON object with "scores": <html>'),
        (b"[1, 2]", 'no JSON object with "scores"'),
        (b'{"score": 1}', 'no JSON object with "scores"'),
        (b"\xff\xfe", 'no JSON object with "scores"'),
        (b"[" * 100_000, 'no JSON object with "scores"'),
        (b'{"scores": 1}', "no list of 5 scores"),
        (b'{"scores": [1, 2]}', "no list of 5 scores"),
        (b'{"scores": [1, 2, NaN, 4, 5]}', "nan as the score of item 2"),
        (b'{"scores": [1, 2, 3, 4, Infinity]}', "inf as the score of item 4"),
        (b'{"scores": [1' + b"0" * 400 + b", 2, 3, 4, 5]}", "inf as the score of item 0"),
        (b'{"scores": [1, null, 3, 4, 5]}', "None as the score of item 1"),
        (b'{"scores": [1, true, 3, 4, 5]}', "True as the score of item 1"),
        (b'{"scores": [1, "2", 3, 4, 5]}', "'2' as the score of item 1"),
    ],
)
def test_an_answer_that_is_none(server, answer, words):
    server.script = [(200, answer)]
    with pytest.raises(ValueError, match="answered with") as refused:
        HttpReward(server.url).score(ITEMS)
    assert str(refused.value).startswith(f"{server.url}/score answered with {words}")


def test_an_answer_without_end(server, monkeypatch):
    monkeypatch.setattr("lit_rlhf.rewards.http._MAX_ANSWER", 100)
    server.script = [(200, b" " * 1000)]
    with pytest.raises(ValueError, match="more than 100 bytes"):
        HttpReward(server.url).score(ITEMS)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8190", "ftp://host/", "file:///etc/passwd", "http://", "http://u:p@host"]
)
def test_urls_that_are_none(url):
    with pytest.raises(ValueError, match="url") as refused:
        HttpReward(url)
    assert "u:p" not in str(refused.value)


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"retries": -1}, {"backoff": -1}, {"batch_size": 0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        HttpReward("http://127.0.0.1", **wrong)


def test_no_proxy_stands_between_this_machine_and_itself(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert HttpReward(server.url, retries=0).score(ITEMS[:1]) == [0.0]
    with pytest.raises(ConnectionError):
        HttpReward("http://192.0.2.1", retries=0, timeout=2).score(ITEMS[:1])
