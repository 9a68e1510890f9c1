"""The one thread that scores: requests that wait for it are scored together, and each gets its own answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import islice
from queue import Empty, Full, Queue
from threading import Thread
from typing import NamedTuple

from datamodules.sources import Row
from lit_rlhf.commands.scoring import Scored, Scorer
from lit_rlhf.commands.serving.requests import BusyError


class Job(NamedTuple):
    """Rows that somebody waits for.

    Args:
        rows: any number of them, each of one example.
        answer: what became of them.
    """

    rows: Sequence[Row]
    answer: Future[list[Scored]]


class Worker(Thread):
    """Scores jobs in the order in which they come.

    Args:
        scorer: used by this thread alone.
        max_waiting: most jobs that may wait.
        max_rows: jobs are put together up to this many rows.
    """

    def __init__(self, scorer: Scorer, max_waiting: int, max_rows: int) -> None:
        super().__init__(name="scores", daemon=True)
        self.scorer = scorer
        self.max_rows = max_rows
        self._waiting: Queue[Job | None] = Queue(max_waiting)

    def score(self, rows: Sequence[Row], timeout: float) -> list[Scored]:
        """Wait for the scores of rows, from any thread.

        Args:
            rows: to be scored.
            timeout: seconds to wait; what has not begun by then is never done.

        Raises:
            BusyError: if too many jobs wait already.
            TimeoutError: if the time is over.
            Exception: whatever scoring these rows raises.
        """
        job = Job(rows, Future())
        try:
            self._waiting.put_nowait(job)
        except Full:
            raise BusyError from None
        try:
            return job.answer.result(timeout)
        except TimeoutError:
            job.answer.cancel()
            raise

    def run(self) -> None:
        """Score what waits until there is nothing more to come."""
        is_open = True
        while is_open:
            jobs, is_open = self._take()
            self._answer([job for job in jobs if job.answer.set_running_or_notify_cancel()])

    def close(self) -> None:
        """Finish what waits, and end."""
        self._waiting.put(None)
        self.join()

    def _take(self) -> tuple[list[Job], bool]:
        """Wait for a job, and take those that wait behind it; and whether more may come."""
        jobs: list[Job] = []
        num_rows = 0
        while num_rows < self.max_rows:
            try:
                job = self._waiting.get(block=not jobs)
            except Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
            num_rows += len(job.rows)
        return jobs, True

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Score jobs together; where that fails, one by one, so that none suffers for another."""
        try:
            scored = iter(self.scorer([row for job in jobs for row in job.rows]))
        except Exception as error:  # whatever it is belongs to the request, and the next one wants its answer
            for job in jobs:
                if len(jobs) == 1:
                    job.answer.set_exception(error)
                else:
                    self._answer([job])
            return
        for job in jobs:
            job.answer.set_result(list(islice(scored, len(job.rows))))
