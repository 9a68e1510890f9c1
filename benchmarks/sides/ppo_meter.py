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


class Noise:
    """What both sides draw the tokens of an iteration by, so that they draw the same ones.

    A token is the likeliest after Gumbel noise, which draws it from the policy; two policies that differ by little draw
    different tokens as seldom as can be (the Gumbel-max coupling). By a number for each token, as responses are drawn
    otherwise, a vocabulary of thousands lets them part at once.

    Args:
        iteration: 0 for the first.
        num_responses: of the iteration.
        num_words: of the vocabulary.
    """

    def __init__(self, iteration: int, num_responses: int, num_words: int) -> None:
        self._shape, self._iteration = (num_responses, num_words), iteration
        self._at, self._times = -1, torch.empty(0)

    def draw(self, logprobs: Tensor, rows: Tensor | slice, at: int) -> Tensor:
        """Ids (B,) of the tokens number ``at`` of some responses.

        Args:
            logprobs: (B, V), in nats, or logits.
            rows: which responses, (B,) or all of them.
            at: 0 for the first token of a response; never one before the last asked for.
        """
        if at != self._at:
            generator = torch.Generator().manual_seed(1000 * self._iteration + at)
            self._at, self._times = at, torch.empty(self._shape).exponential_(generator=generator).log_()
        return (logprobs - self._times[rows].to(logprobs.device)).argmax(-1)
