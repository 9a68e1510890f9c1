"""Which responses of a row are preferred to which."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from datamodules.records import Record

Pairing = Literal["all", "best_worst"]
Margins = Literal["column", "scores"]


def preferences_of(
    record: Record, pairing: Pairing = "all", kept: Sequence[int] | None = None, margins: Margins = "column"
) -> tuple[tuple[int, int, float], ...]:
    """Pair the responses of a record by their ranks; equal ranks give no pair.

    Args:
        record: with ranked responses.
        pairing: ``all`` pairs every response with all of higher rank; ``best_worst`` only the best with the worst.
        kept: indices of the responses that are left; all unless given.
        margins: ``scores`` takes the difference of two scores for a margin where the record has none.

    Returns:
        Pairs as (better, worse, margin), counted among those kept. The margin is that of the record, where it has one
        for two responses, else as ``margins`` says, else 0.

    Example:
        >>> from datamodules.records import Response
        >>> ranked = tuple(Response(text, rank, score) for text, rank, score in [("a", 1, 2.0), ("b", 0, 5.0)])
        >>> preferences_of(Record("scored", "", ranked), margins="scores")
        ((1, 0, 3.0),)
    """
    responses = [record.responses[index] for index in (range(len(record.responses)) if kept is None else kept)]
    best_first = sorted(range(len(responses)), key=lambda index: responses[index].rank)
    paired = best_first if pairing == "all" else best_first[:1] + best_first[1:][-1:]
    preferences = []
    for better, worse in combinations(paired, 2):
        if responses[better].rank == responses[worse].rank:
            continue
        scores = responses[better].score, responses[worse].score
        margin = 0.0
        if margins == "scores" and scores[0] is not None and scores[1] is not None:
            margin = scores[0] - scores[1]
        if record.margin and len(record.responses) == 2:
            margin = record.margin if better == 0 else -record.margin
        preferences.append((better, worse, margin))
    return tuple(preferences)
