"""Requests for scores: the answers, and why there is none."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lit_rlhf.commands.serving.scores.schema import SCHEMA

ITEM = {"prompt": "a", "response": " b"}


def test_scores_in_the_order_of_the_items(score_server, ask):
    items = [{"prompt": "a", "response": "b" * length} for length in (3, 1, 2)]
    status, answer, headers = ask(score_server(), body={"items": items})
    assert (status, answer["scores"], answer["model"]) == (200, [3.0, 1.0, 2.0], "mine")
    assert headers["Connection"] == "close"
    assert "Python" not in headers["Server"]


def test_a_single_item_and_normalised_scores(score_server, ask):
    status, answer, _ = ask(score_server(), body={**ITEM, "normalise": True})
    assert (status, answer) == (200, {"score": 0.2, "truncated": False, "normalised": True, "model": "mine"})


def test_health_and_schema(score_server, ask):
    server = score_server()
    assert ask(server, "GET", "/health?x=1")[:2] == (200, {"status": "ok"})
    assert ask(server, "GET", "/schema")[:2] == (200, SCHEMA)


@pytest.mark.parametrize(
    ("items", "status", "item", "words"),
    [
        ([ITEM, {"prompt": "a"}], 400, 1, "items[1] has 'prompt'"),
        ([ITEM, {"prompt": "a", "response": " "}], 422, 1, "items[1]: "),
        ([ITEM, {"messages": [{"role": "alien", "content": "a"}]}], 422, 1, "items[1]: "),
        ([ITEM, ITEM, {"prompt": "a", "response": "nan"}], 500, 2, "items[2]: the model gives it the score nan"),
        ([{"prompt": "a", "response": "template"}], 422, None, "items[0]: no chat template"),
        ([{"prompt": "a", "response": "boom"}], 500, None, "it failed: RuntimeError"),
        ([ITEM] * 9, 413, None, "9 items; at most 8"),
    ],
)
def test_items_that_get_no_score(score_server, ask, capsys, items, status, item, words):
    server = score_server(max_items=8)
    found, answer, _ = ask(server, body={"items": items})
    assert (found, answer["error"].get("item")) == (status, item)
    assert words in answer["error"]["message"]
    assert ask(server, body=ITEM)[0] == 200
    assert capsys.readouterr().err == ("RuntimeError: boom\n" if "boom" in str(items) else "")


def test_a_single_item_that_gets_no_score_has_no_number(score_server, ask):
    assert ask(score_server(), body={"prompt": "a", "response": ""})[1] == {
        "error": {"message": "the request: 'response' has an empty response"}
    }


def test_normalising_what_was_never_measured(score_server, ask, length_scorer):
    def refuse(scores):
        raise ValueError("this reward model does not know how its scores spread")

    length_scorer.normalise = refuse
    status, answer, _ = ask(score_server(), body={**ITEM, "normalise": True})
    assert (status, answer["error"]["message"][:17]) == (400, "this reward model")


def test_scores_that_take_too_long(score_server, ask, length_scorer):
    length_scorer.go.clear()
    begin = time.monotonic()
    status, answer, _ = ask(score_server(timeout=0.2), body=ITEM)
    assert time.monotonic() - begin < 2
    assert (status, answer["error"]["message"]) == (504, "not scored within 0.2 seconds; send fewer items at once")


def test_too_many_requests_at_once(score_server, ask, length_scorer, monkeypatch):
    monkeypatch.setattr("lit_rlhf.commands.serving.scores.handler._MAX_WAITING", 1)
    server = score_server()
    length_scorer.go.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, server, body=ITEM)
        assert length_scorer.begun.wait(5)
        waiting = pool.submit(ask, server, body=ITEM)
        while not server.worker._waiting.full():
            time.sleep(0.001)
        status, _, headers = ask(server, body=ITEM)
        assert (status, headers["Retry-After"]) == (503, "1")
        length_scorer.go.set()
        assert [future.result(5)[0] for future in (running, waiting)] == [200, 200]
