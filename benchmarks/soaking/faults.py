"""What goes wrong with a run, at a moment that is drawn. Each fault is a function that returns once it has ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from soaking.server import FlakyServer


class Attempt(NamedTuple):
    """One start of a run.

    Args:
        command: that starts it, or goes on with it.
        log: file that what it prints is added to.
        checkpoints: folder of its checkpoints.
        seconds: after which the fault strikes.
        server: of rewards; None where it asks for none.
        draw: of what is left open.
    """

    command: Sequence[str]
    log: Path
    checkpoints: Path
    seconds: float
    server: FlakyServer | None
    draw: random.Random


class Ended(NamedTuple):
    """How an attempt ended.

    Args:
        status: exit status; negative = the signal.
        has_struck: whether the fault came before the end.
        note: what was done.
    """

    status: int
    has_struck: bool
    note: str


def undisturbed(attempt: Attempt) -> Ended:
    """Let it run to its end."""
    return Ended(_start(attempt).wait(), False, "")


def killed(attempt: Attempt) -> Ended:
    """SIGKILL: nothing of it runs any more."""
    return _signalled(attempt, signal.SIGKILL)


def told_to_go(attempt: Attempt) -> Ended:
    """SIGTERM: it may save itself first."""
    return _signalled(attempt, signal.SIGTERM)


def damaged(attempt: Attempt) -> Ended:
    """SIGKILL, and then the newest checkpoint is cut, emptied, overwritten, or one of its bits turns."""
    ended = killed(attempt)
    files = sorted(attempt.checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    if not ended.has_struck or len(files) < 2:
        return ended
    how = attempt.draw.choice(list(_DAMAGES))
    content = files[-1].read_bytes() or b"\0"  # what an earlier damage may have left
    files[-1].write_bytes(_DAMAGES[how](content, attempt.draw.randrange(len(content))))
    return ended._replace(note=how)


def without_room(attempt: Attempt) -> Ended:
    """No file may grow to the size of a checkpoint: what a full disk does to the next one that is saved."""
    sizes = [file.stat().st_size for file in attempt.checkpoints.glob("*.ckpt")]
    if not sizes:
        return killed(attempt)
    room = int(0.6 * min(sizes))
    limited = [sys.executable, "-c", _LIMIT.format(room=room), *attempt.command]
    status = _start(attempt._replace(command=limited)).wait()
    return Ended(status, status != 0, f"{room} bytes")


def without_rewards(attempt: Attempt) -> Ended:
    """The reward server is gone for longer than anybody asks again."""
    assert attempt.server is not None
    process = _start(attempt)
    try:
        return Ended(process.wait(attempt.seconds), False, "")
    except subprocess.TimeoutExpired:
        attempt.server.is_down = True
    status = process.wait()
    attempt.server.is_down = False
    return Ended(status, status != 0, "")


FAULTS: dict[str, Callable[[Attempt], Ended]] = {
    "killed": killed,
    "told to go": told_to_go,
    "checkpoint damaged": damaged,
    "disk full": without_room,
    "rewards gone": without_rewards,
}
"""Every fault, by what it is called in the report."""


_LIMIT = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room})); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Starts a program whose files cannot grow beyond a size; Python ignores the signal that comes with it."""


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


_DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": lambda content, at: content[:at],
    "emptied": lambda content, at: b"",
    "a bit turned": _flipped,
    "overwritten": lambda content, at: os.urandom(len(content)),
}


def _signalled(attempt: Attempt, number: signal.Signals) -> Ended:
    process = _start(attempt)
    try:
        return Ended(process.wait(attempt.seconds), False, "")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number)
    return Ended(process.wait(), True, "")


def _start(attempt: Attempt) -> subprocess.Popen[bytes]:
    with attempt.log.open("ab") as log:
        return subprocess.Popen(attempt.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
