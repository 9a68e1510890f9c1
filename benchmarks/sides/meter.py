"""Time and peak memory of training steps, the same on both sides; needs torch alone."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path

import torch

MIB = 2**20


class Meter:
    """Measures the steps after a warm-up.

    On a CPU: seconds of processor time of this process, and the high-water mark of its resident memory above what was
    resident when training began (the loaded model). On a GPU: seconds on the clock, and the peak of allocated memory
    above what was allocated then.

    Args:
        device: ``cpu`` or ``cuda``.
        warmup: steps that are run before time is taken; their memory counts.
    """

    def __init__(self, device: str, warmup: int) -> None:
        self.device, self.warmup = device, warmup
        self.steps = 0
        self.began = self.ended = 0.0
        self.loaded = 0

    def begin(self) -> None:
        """Training begins: the model is loaded, no step has been run."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.loaded = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
            self.loaded = _status("VmRSS")

    def step(self) -> None:
        """Count a step that has ended."""
        self.steps += 1
        if self.steps == self.warmup:
            self.began = self._now()
        self.ended = self._now()

    def result(self) -> dict[str, float]:
        """Seconds of the measured steps together, and MiB."""
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else _status("VmHWM")
        return {
            "steps": self.steps - self.warmup,
            "seconds": self.ended - self.began,
            "loaded_mib": self.loaded / MIB,
            "peak_mib": (peak - self.loaded) / MIB,
        }

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def _status(name: str) -> int:
    """A size in bytes out of this process's status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
