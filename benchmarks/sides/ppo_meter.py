"""What both sides of the PPO benchmarks have in common: time of the phases and memory, and draws; needs torch alone."""

from __future__ import annotations

import torch
from meter import Meter
from torch import Tensor

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


def draw_numbers(iteration: int, num_responses: int, num_tokens: int) -> Tensor:
    """(L, R) float64 in [0, 1), what the tokens of an iteration's responses are drawn by: both sides draw the same."""
    generator = torch.Generator().manual_seed(iteration)
    return torch.rand(num_responses, num_tokens, dtype=torch.float64, generator=generator)


def drawn_by(numbers: Tensor, weights: Tensor) -> Tensor:
    """Ids (L, 1) of the tokens that numbers (L,) fall on, by their weights (L, V)."""
    mass = weights.cumsum(-1, dtype=torch.float64)
    wanted = (numbers.to(mass.device) * mass[:, -1])[:, None]
    return torch.searchsorted(mass, wanted, right=True).clamp_(max=weights.shape[1] - 1)
