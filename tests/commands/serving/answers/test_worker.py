"""The thread that draws: one request after another, and none for a client that has left."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lit_rlhf.commands.serving.answers.schema import read_completion
from lit_rlhf.commands.serving.answers.worker import Drawer, Job, Said
from lit_rlhf.commands.serving.requests import BusyError


def job(voice, **asked):
    return Job(read_completion(json.dumps({"prompt": "a b c", **asked}).encode(), 8), voice)


@pytest.fixture
def drawer(voice):
    drawer = Drawer(1)
    drawer.start()
    yield drawer
    voice.go.set()
    if drawer.is_alive():
        drawer.close()


def said(drawer, job, is_there=lambda: True):
    return list(drawer.said(job, is_there))


def test_what_is_said_token_by_token_with_its_numbers(drawer, voice):
    found = said(drawer, job(voice, max_tokens=2))
    assert found == [
        Said(0, "a ", (), None, 3, 1),
        Said(0, "b ", (), None, 3, 2),
        Said(0, "", (), "length", 3, 2),
    ]
    assert said(drawer, job(voice))[-1] == Said(0, "", (), "stop", 3, 4)


def test_several_answers_have_seeds_of_their_own_and_a_prompt_is_counted_once(drawer, voice):
    found = said(drawer, job(voice, prompt=["a b", "c"], n=2, seed=2**63 - 1, stop="z"))
    ends = [one for one in found if one.end is not None]
    assert [(one.number, one.num_prompt_tokens) for one in ends] == [(0, 2), (1, 0), (2, 1), (3, 0)]
    assert [options.seed for _, options, _ in voice.asked] == [2**63 - 1, 0, 1, 2]
    assert {stops for *_, stops in voice.asked} == {("z",)}


def test_log_probabilities_where_they_are_wanted(drawer, voice):
    found = [one for one in said(drawer, job(voice, prompt="a b", logprobs=2)) if one.tokens]
    assert [one.tokens[0].text for one in found] == ["t0", "t1"]  # and none of the token that ends it
    (token,) = found[1].tokens
    assert [text for text, _ in token.top] == ["t9", "t8"]
    assert token.logprob == pytest.approx(token.top[0][1] - 8)


def test_what_cannot_be_has_a_number_that_json_knows(drawer, voice):
    voice.logprobs[1:] = -torch.inf
    (token,) = said(drawer, job(voice, prompt="a", logprobs=2))[0].tokens
    assert [logprob for _, logprob in token.top][1] == -9999.0


def test_nothing_is_drawn_for_a_client_that_has_left(drawer, voice):
    pieces = drawer.said(job(voice, prompt="a " * 100_000, max_tokens=100_000), lambda: voice.num_said < 3)
    with pytest.raises(ConnectionError, match="the client has left"):
        list(pieces)
    assert said(drawer, job(type(voice)()))[-1].end == "stop"  # the next one is answered, and soon
    assert voice.num_said < 90_000


def test_an_answer_left_in_the_middle_is_drawn_no_further(drawer, voice):
    pieces = drawer.said(job(voice, prompt="a " * 100_000, max_tokens=100_000), lambda: True)
    next(pieces)
    pieces.close()
    said(drawer, job(voice))
    assert voice.num_said < 90_000


def test_waiting_requests_are_bounded_and_left_ones_are_not_begun(drawer, voice):
    voice.go.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(said, drawer, job(voice))
        assert voice.begun.wait(5)
        left = job(voice, prompt="never")
        waiting = pool.submit(said, drawer, left, lambda: not drawer._waiting.full())
        with pytest.raises(ConnectionError):
            waiting.result(5)
        with pytest.raises(BusyError):
            said(drawer, job(voice))
        voice.go.set()
        assert running.result(5)[-1].end == "stop"
        deadline = time.monotonic() + 5
        while drawer._waiting.full():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert said(drawer, job(voice))[-1].end == "stop"
    assert "never" not in [prompt.said for prompt, *_ in voice.asked]


def test_what_goes_wrong_belongs_to_its_request(drawer, voice):
    with pytest.raises(RuntimeError, match="boom"):
        said(drawer, job(voice, prompt="a boom"))
    assert said(drawer, job(voice))[-1].end == "stop"


def test_no_answer_begins_before_all_prompts_are_read(drawer, voice):
    with pytest.raises(ValueError, match="takes 9"):
        said(drawer, job(voice, prompt=["a", "long"]))
    assert voice.asked == []


def test_closing_breaks_off_what_is_drawn(drawer, voice):
    voice.go.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(said, drawer, job(voice))
        assert voice.begun.wait(5)
        closing = pool.submit(drawer.close)
        while not drawer._is_closing.is_set():
            time.sleep(0.001)
        voice.go.set()
        closing.result(5)
        with pytest.raises(ConnectionError, match="the server ends"):
            running.result(5)
    assert not drawer.is_alive()
