"""The scoring thread: requests that wait are scored together, in order, and none suffers for another."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from datamodules.sources import Row
from lit_rlhf.commands.serving.requests import BusyError
from lit_rlhf.commands.serving.scores.worker import Worker


def rows(*responses):
    return [Row(f"items[{n}]", "requests", {"prompt": "a", "response": text}) for n, text in enumerate(responses)]


@pytest.fixture
def worker(length_scorer):
    worker = Worker(length_scorer, max_waiting=4, max_rows=6)
    worker.start()
    yield worker
    length_scorer.go.set()
    worker.close()
    assert not worker.is_alive()


def waiting(worker, number):
    """Wait until ``number`` jobs stand in the queue."""
    while worker._waiting.qsize() < number:
        time.sleep(0.001)


@pytest.fixture
def held(worker, length_scorer):
    """``held(*jobs)``: hand in jobs while the worker is busy with another; gives their results in order."""
    length_scorer.go.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(worker.score, rows("first"), 5)
        assert length_scorer.begun.wait(5)

        def hand_in(*jobs):
            futures = []
            for number, job in enumerate(jobs, start=1):
                futures.append(pool.submit(worker.score, job, 5))
                waiting(worker, number)
            length_scorer.go.set()
            first.result(5)
            return futures

        yield hand_in
        length_scorer.go.set()


def test_jobs_that_wait_are_scored_together_and_get_their_own(held, length_scorer):
    futures = held(rows("b", "cc"), rows(), rows("ddd"))
    assert [[one.scores for one in future.result(5)] for future in futures] == [[[1.0], [2.0]], [], [[3.0]]]
    assert length_scorer.calls == [1, 3]


def test_no_more_rows_than_the_limit_are_put_together(held, length_scorer):
    futures = held(*[rows("b", "b", "b", "b")] * 3)
    assert [len(future.result(5)) for future in futures] == [4, 4, 4]
    assert length_scorer.calls == [1, 8, 4]


def test_a_job_that_fails_fails_alone(held):
    sound, boom, template = held(rows("b"), rows("boom"), rows("template"))
    assert sound.result(5)[0].scores == [1.0]
    with pytest.raises(RuntimeError, match="boom"):
        boom.result(5)
    with pytest.raises(ValueError, match=r"items\[0\]: no chat template"):
        template.result(5)


def test_the_worker_outlives_a_failure(worker):
    with pytest.raises(RuntimeError):
        worker.score(rows("boom"), 5)
    assert worker.score(rows("bb"), 5)[0].scores == [2.0]


def test_who_does_not_get_scores_in_time_is_told_and_not_scored(worker, length_scorer):
    length_scorer.go.clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(worker.score, rows("b"), 5)
        assert length_scorer.begun.wait(5)
        with pytest.raises(TimeoutError):
            worker.score(rows("late", "late"), 0.01)
        length_scorer.go.set()
        running.result(5)
    assert worker.score(rows("b"), 5)[0].scores == [1.0]
    assert 2 not in length_scorer.calls


def test_a_full_queue_refuses(worker, length_scorer):
    length_scorer.go.clear()
    with ThreadPoolExecutor(5) as pool:
        running = pool.submit(worker.score, rows("b"), 5)
        assert length_scorer.begun.wait(5)
        futures = [pool.submit(worker.score, rows("b"), 5) for _ in range(4)]
        waiting(worker, 4)
        with pytest.raises(BusyError):
            worker.score(rows("b"), 5)
        length_scorer.go.set()
        assert [future.result(5)[0].scores for future in (running, *futures)] == [[1.0]] * 5


def test_close_finishes_what_waits(length_scorer):
    worker = Worker(length_scorer, max_waiting=4, max_rows=1)
    length_scorer.go.clear()
    worker.start()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(worker.score, rows("b" * number), 5) for number in (1, 2, 3)]
        assert length_scorer.begun.wait(5)
        waiting(worker, 2)
        closing = pool.submit(worker.close)
        length_scorer.go.set()
        assert sorted(future.result(5)[0].scores[0] for future in futures) == [1.0, 2.0, 3.0]
        closing.result(5)
    assert not worker.is_alive()
