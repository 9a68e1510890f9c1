"""How fast training goes."""

from __future__ import annotations

import time


class Throughput:
    """Tokens per second of training on this rank, pauses left out.

    Example:
        >>> throughput = Throughput()
        >>> throughput.add(100)
        >>> throughput.rate() > 0, throughput.rate()
        (True, 0.0)
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._since = self._paused = time.monotonic()

    def add(self, num_tokens: int) -> None:
        """Count tokens that were trained on."""
        self._num_tokens += num_tokens

    def pause(self) -> None:
        """Stop the clock."""
        self._paused = time.monotonic()

    def go_on(self) -> None:
        """Let the clock run again after a pause."""
        self._since += time.monotonic() - self._paused

    def rate(self) -> float:
        """Tokens per second since the last call."""
        now = time.monotonic()
        rate = self._num_tokens / max(now - self._since, 1e-9)
        self._num_tokens, self._since = 0, now
        return rate
