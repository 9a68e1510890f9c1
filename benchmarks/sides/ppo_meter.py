"""Time of the phases of PPO iterations, and their memory, the same on both sides; needs torch alone."""

from __future__ import annotations

from meter import Meter

PHASES = ("rollout", "score", "update")


class PhaseMeter(Meter):
    """Measures the iterations after a warm-up, and each of their phases.

    Args:
        device: ``cpu`` or ``cuda``.
        warmup: iterations that are run before time is taken; their memory counts.
    """

    def __init__(self, device: str, warmup: int) -> None:
        super().__init__(device, warmup)
        self.phases = dict.fromkeys(PHASES, 0.0)
        self.lengths: list[int] = []
        self._phase, self._since = "", 0.0

    def begin(self) -> None:
        """Training begins: the models are loaded, no iteration has been run."""
        super().begin()
        self.began = self._now()

    def enter(self, phase: str) -> None:
        """A phase begins; the one before it ends."""
        now = self._now()
        if self._phase and self.steps >= self.warmup:
            self.phases[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def count(self, lengths: list[int]) -> None:
        """Note the tokens of each response that was drawn, what ended it included."""
        if self.steps >= self.warmup:
            self.lengths += lengths

    def step(self) -> None:
        """Count an iteration that has ended."""
        self.enter("")
        super().step()

    def result(self) -> dict[str, float | dict[str, float] | dict[str, int]]:
        """Seconds and MiB as of other meters; seconds of each phase; responses and their tokens."""
        counts = {"responses": len(self.lengths), "response": sum(self.lengths)}
        return {**super().result(), "phases": self.phases, "tokens": counts}
