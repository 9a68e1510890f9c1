"""Rows that training reads, added to a file of JSON lines one by one."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from lit_rlhf.commands.speaking.prompts import Messages

Row = dict[str, Any]


def append_row(file: Path, row: Row) -> None:
    """Add a line to a file in one write, so that it is there whole or not at all, and on the disk.

    Args:
        file: is made if need be, and so is its folder; a last line without an end gets one.
        row: what JSON can hold.

    Raises:
        OSError: if it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with file.open("ab+", buffering=0) as out:
        _lock(out)
        if size := out.seek(0, os.SEEK_END):
            out.seek(size - 1)
            line = line if out.read(1) == b"\n" else b"\n" + line
        if out.write(line) != len(line):
            out.truncate(size)
            raise OSError(f"{file}: there is no room for another row")
        os.fsync(out.fileno())


def _lock(file: FileIO) -> None:
    """Keep other talks out until the file is closed, where the system can."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def thumb_row(prompt: Messages | str, answer: str, *, is_good: bool, voice: str) -> Row:
    """An answer with a thumb up or down.

    Args:
        prompt: messages, or a text.
        answer: to it.
        is_good: which thumb.
        voice: who said it.
    """
    return {"prompt": prompt, "completion": _as(prompt, answer), "label": is_good, "completion_by": voice}


def pair_row(prompt: Messages | str, chosen: str, rejected: str, *, voices: tuple[str, str]) -> Row:
    """A better and a worse answer.

    Args:
        prompt: messages, or a text.
        chosen: the better one.
        rejected: the worse one.
        voices: who said them.
    """
    better, worse = voices
    words = {"prompt": prompt, "chosen": _as(prompt, chosen), "rejected": _as(prompt, rejected)}
    return {**words, "chosen_by": better, "rejected_by": worse}


def _as(prompt: Messages | str, answer: str) -> Messages | str:
    """An answer of the kind of its prompt."""
    return answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
