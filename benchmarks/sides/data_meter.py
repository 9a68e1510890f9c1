"""Time and memory of reading data, the same on every side of ``benchmarks/data.py``; standard library alone."""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

MIB = 2**20

Job = dict[str, Any]


class Clock:
    """Times what runs inside a ``with``.

    Attributes:
        seconds: on the clock.
        cpu_seconds: of processor time, of this process and of its children that have ended.
    """

    seconds = cpu_seconds = 0.0

    def __enter__(self) -> Clock:
        self._began = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.seconds, self.cpu_seconds = time.perf_counter() - self._began[0], _cpu_seconds() - self._began[1]


class Memory:
    """Resident memory of this process above what it held when this was made."""

    def __init__(self) -> None:
        self.loaded = _status("VmRSS")

    def now_mib(self) -> float:
        """What is resident at this moment, in MiB above the beginning."""
        return (_status("VmRSS") - self.loaded) / MIB

    def peak_mib(self) -> float:
        """High-water mark of this process, or of the largest child that has ended, in MiB above the beginning."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return (max(_status("VmHWM"), children) - self.loaded) / MIB


def seconds_alive() -> float:
    """Seconds on the clock since this process began; said after the imports, what they took."""
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def forget(file: str | Path) -> None:
    """Have the system read a file from the disk again: drop what it holds of it in memory."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)  # only what is on the disk can be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def do(jobs: Mapping[str, Callable[[Job], dict[str, Any]]]) -> None:
    """Do the job that the command line asks for, and write what it returns.

    Args:
        jobs: function by name.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=jobs)
    parser.add_argument("job", type=json.loads)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.write_text(json.dumps(jobs[options.name](options.job)))


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _status(name: str) -> int:
    """A size in bytes out of this process's status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
