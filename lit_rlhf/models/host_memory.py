"""Memory of the host that one pass frees and the next one asks for again.

The C library hands large blocks back to the system as soon as they are free, and the system clears every page of them
before it lends them again. Training asks for the same blocks at every step, and on a CPU the clearing takes its time.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of settings in malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; blocks above it go back in any case


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, for its next pass; its peak stays about the same.

    Nothing is changed where the environment says how memory is handed back (``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``), nor with another C library than glibc.

    Returns:
        Whether it does from now on.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if set_option is None:
        return False
    return bool(set_option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and set_option(_TRIM_THRESHOLD, -1))
