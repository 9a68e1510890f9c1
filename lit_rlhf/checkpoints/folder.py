"""The checkpoints of a folder: which is the newest that can be used, and which are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lit_rlhf.checkpoints.reading import verify

SUFFIX = ".ckpt"
LAST = "last"


class Found(NamedTuple):
    """What a look at a folder came to.

    Attributes:
        path: of the newest checkpoint that can be used; None if there is none.
        skipped: of those that were tried before it, what is wrong with each.
    """

    path: Path | None
    skipped: list[str]


def newest_valid(folder: Path) -> Found:
    """Find the checkpoint to go on from: ``last.ckpt`` where it is whole, else the newest other one that is.

    Args:
        folder: with files named ``*.ckpt``.
    """
    skipped = []
    for path in _newest_first(folder):
        if wrong := what_is_wrong(path):
            skipped.append(wrong)
        else:
            return Found(path, skipped)
    return Found(None, skipped)


def valid_beside(path: Path) -> list[Path]:
    """The other checkpoints in the folder of one that can be used, the newest first."""
    return [other for other in _newest_first(path.parent) if other != path and not what_is_wrong(other)]


def what_is_wrong(path: Path) -> str:
    """Why a file cannot be used as a checkpoint; empty if it can."""
    try:
        verify(path)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _newest_first(folder: Path) -> list[Path]:
    """``last*.ckpt`` before the numbered ones, which may be the best and not the newest."""
    files = (path for path in folder.glob(f"*{SUFFIX}") if path.is_file())
    return sorted(files, key=lambda path: (not path.name.startswith(LAST), -path.stat().st_mtime_ns, path.name))
