"""What named devices can do, by their makers' data sheets: dense, without sparsity."""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple


class Device(NamedTuple):
    """A device.

    Args:
        name: as it is given on the command line.
        gigabytes: of memory, 10^9 bytes; None = it is not asked.
        teraflops: 10^12 operations per second of matrix products, in bfloat16 (a T4: float16; a CPU: float32).
        terabytes: 10^12 bytes per second out of its memory.
    """

    name: str
    gigabytes: float | None
    teraflops: float
    terabytes: float


DEVICES = {
    device.name: device
    for device in (
        Device("b200", 180, 2250, 8.0),
        Device("h200", 141, 989, 4.8),
        Device("h100", 80, 989, 3.35),
        Device("a100-80", 80, 312, 2.04),
        Device("a100-40", 40, 312, 1.56),
        Device("l40s", 48, 362, 0.864),
        Device("a10", 24, 125, 0.6),
        Device("l4", 24, 121, 0.3),
        Device("rtx5090", 32, 209, 1.79),
        Device("rtx4090", 24, 165, 1.01),
        Device("rtx3090", 24, 71, 0.936),
        Device("rtx4070", 12, 58, 0.504),
        Device("t4", 16, 65, 0.32),
        Device("cpu", None, 0.1, 0.02),
    )
}
"""Known devices. The CPU is a guess at two cores with AVX2."""


def device(name: str) -> Device:
    """A device by its name.

    Raises:
        ValueError: for a name that is not known, with the nearest.

    Example:
        >>> device("h100").gigabytes
        80
    """
    if name.lower() in DEVICES:
        return DEVICES[name.lower()]
    near = get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"--gpu {name}: not known; {hint}there are {', '.join(DEVICES)}")
