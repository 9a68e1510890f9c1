"""Seconds of a step on a named device: operations at a share of its peak, and reading at a share of its bandwidth."""

from __future__ import annotations

from lit_rlhf.estimating.flops import Work
from lit_rlhf.estimating.gpus import Device

UTILISATION = 0.4
"""Share of the peak that training reaches; an assumption: 0.35-0.5 is usual for tuned code."""
READING = 0.6
"""Share of the bandwidth that drawing responses reaches; an assumption."""


def seconds(work: Work, device: Device) -> dict[str, float]:
    """Seconds of each phase of a step on one device; drawing is bound by the slower of reading and computing."""
    found = {phase: flops / (device.teraflops * 1e12 * UTILISATION) for phase, flops in work.flops.items()}
    if work.decode_bytes:
        found["rollout"] = max(found["rollout"], work.decode_bytes / (device.terabytes * 1e12 * READING))
    return found
