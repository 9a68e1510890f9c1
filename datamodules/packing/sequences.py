"""Texts to imitate, packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datamodules.packing.bins import fill_micro_batches
from datamodules.packing.rows import TokenSequence
from lit_rlhf.types import Cursor, Forest, InstructionBatch, Instructions, Segment

_BEGINNING = Cursor()


def pack_sequences(
    sequences: Sequence[TokenSequence],
    token_budget: int,
    notes: Mapping[str, int] | None = None,
    cursor: Cursor = _BEGINNING,
) -> InstructionBatch:
    """Make the batch of one optimizer step from texts to imitate.

    Args:
        sequences: the texts of the step; may be empty.
        token_budget: tokens per micro-batch; a longer text gets one to itself.
        notes: counts of what happened to rows on the way.
        cursor: where a stream goes on after this batch.

    Raises:
        ValueError: if a text is empty or its first token is scored.
    """
    micro_batches, fill = fill_micro_batches(sequences, token_budget, _instructions)
    return InstructionBatch(micro_batches, {**(notes or {}), **fill}, cursor)


def _instructions(sequences: Sequence[TokenSequence]) -> Instructions:
    return Instructions(
        forest=Forest.pack([Segment(one.tokens, one.scored, pictures=one.pictures)] for one in sequences),
        rows=tuple(sequence.row for sequence in sequences),
        sources=tuple(sequence.source for sequence in sequences),
    )
