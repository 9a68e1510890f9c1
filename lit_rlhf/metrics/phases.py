"""What an iteration is doing, for how long, and how fast: rollout, score, update."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import torch


class Phase(NamedTuple):
    """What is being done.

    Args:
        name: of the phase.
        done: how much of it is done, in whatever unit the phase counts.
        total: how much there is to do; None where the phase does not say.
    """

    name: str
    done: int = 0
    total: int | None = None

    def __str__(self) -> str:
        return self.name if self.total is None else f"{self.name} {self.done}/{self.total}"


class Phases:
    """Seconds and tokens per second of each phase, and which one is on.

    Phases follow one another; one that is entered again goes on where it left. A GPU is waited for at the borders of a
    phase and nowhere else, so that its work is counted where it was ordered.

    Example:
        >>> phases = Phases()
        >>> with phases("rollout"):
        ...     phases.progress(3, 64)
        ...     print(phases.now)
        ...     phases.count("rollout", 100)
        rollout 3/64
        >>> phases.now, sorted(phases.report()), phases.report()
        (None, ['rollout/tokens_per_second', 'time/rollout'], {})
    """

    def __init__(self) -> None:
        self.now: Phase | None = None
        self.watcher: Callable[[], None] | None = None
        """Called whenever there is news: a phase has begun or has come further."""
        self.totals: defaultdict[str, float] = defaultdict(float)
        """Seconds of each phase since this was made, by name."""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._tokens: defaultdict[tuple[str, str], int] = defaultdict(int)  # by (what is fast or slow, phase)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what is done inside.

        Args:
            name: of the phase.

        Raises:
            ValueError: inside another phase, whose seconds these would be as well.
        """
        if self.now is not None:
            raise ValueError(f"phase '{name}' begins inside phase '{self.now.name}': phases follow one another")
        begin = _seconds_on_device()
        self._tell(Phase(name))
        try:
            yield
        finally:
            self.now = None
        # Not in `finally`: a device that has failed would raise once more and hide why.
        spent = _seconds_on_device() - begin
        self._seconds[name] += spent
        self.totals[name] += spent

    def progress(self, done: int, total: int) -> None:
        """Say how far the phase is.

        Args:
            done: how much of it is done.
            total: how much there is to do, in the same unit.

        Raises:
            ValueError: outside a phase.
        """
        self._tell(Phase(self._inside(), done, total))

    def count(self, name: str, tokens: int) -> None:
        """Add tokens to what the phase has worked through.

        Args:
            name: what they are reported as: ``<name>/tokens_per_second``.
            tokens: how many.

        Raises:
            ValueError: outside a phase.
        """
        self._tokens[name, self._inside()] += tokens

    def report(self) -> dict[str, float]:
        """Seconds ``time/<phase>`` and ``<name>/tokens_per_second`` since the last report, of this rank."""
        seconds, tokens = dict(self._seconds), dict(self._tokens)
        self._seconds.clear()
        self._tokens.clear()
        times = {f"time/{phase}": spent for phase, spent in seconds.items()}
        rates = {
            f"{name}/tokens_per_second": num_tokens / max(seconds[phase], 1e-9)
            for (name, phase), num_tokens in tokens.items()
            if phase in seconds
        }
        return times | rates

    def _inside(self) -> str:
        if self.now is None:
            raise ValueError('there is no phase to count for: call this inside `with phases("rollout"):` or the like')
        return self.now.name

    def _tell(self, phase: Phase) -> None:
        self.now = phase
        if self.watcher is not None:
            self.watcher()


@runtime_checkable
class HasPhases(Protocol):
    """A module whose iterations have phases, which the progress bar then names."""

    phases: Phases


def _seconds_on_device() -> float:
    """The clock, once what was ordered from the GPU is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.monotonic()
