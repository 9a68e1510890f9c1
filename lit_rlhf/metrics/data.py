"""What became of rows on their way into batches, as shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

DATA_METRICS = ("data/dropped", "data/truncated", "data/fill")
"""Shares that every algorithm logs: rows dropped, rows cut, and the room of micro-batches that tokens fill."""


def data_sums(notes: Mapping[str, int], num_examples: int) -> dict[str, tuple[float, float | None]]:
    """Shares of examples dropped or cut on the way, in all and by reason, and of the room that tokens fill.

    Args:
        notes: of a batch.
        num_examples: that are left in it.

    Example:
        >>> data_sums({"dropped/too_long": 1, "tokens": 30, "room": 40}, num_examples=3)["data/fill"]
        (30.0, 40.0)
    """
    sums: dict[str, tuple[float, float | None]] = {}
    counts = {kind: Counter[str]() for kind in ("dropped", "truncated")}
    for note, count in notes.items():
        kind, _, reason = note.partition("/")
        if kind in counts:
            counts[kind][reason] += count
    rows = num_examples + counts["dropped"].total()
    for kind, reasons in counts.items():
        sums[f"data/{kind}"] = (float(reasons.total()), float(rows))
        sums.update({f"data/{kind}/{reason}": (float(count), None) for reason, count in reasons.items()})
    if room := notes.get("room"):
        sums["data/fill"] = (float(notes["tokens"]), float(room))
    return sums
