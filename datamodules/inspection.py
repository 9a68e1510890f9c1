"""What a data module sees of its rows, before a model is loaded: forms, lengths, what is cut or lost and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from datamodules.making import BatchMaker, Outcome
from datamodules.order import RowOrder
from datamodules.sources import OpenSource, Row
from datamodules.streamed import StreamedDataModule
from lit_rlhf.types import Cursor, Forest, InstructionBatch, PreferencePairs, PromptBatch, UnpairedResponses


class Loss(NamedTuple):
    """Rows that are lost for one reason.

    Args:
        num_rows: how many.
        address: of the first.
        message: what is wrong with it.
    """

    num_rows: int
    address: str
    message: str


@dataclass
class SourceReport:
    """What was seen of one source.

    Args:
        source: which.
        num_rows: rows that were read.
        is_whole: whether those are all.
        num_used: examples that can be used.
        forms: examples by the name of the form they were read by.
        truncated: examples by what was cut of them.
        lost: rows by why they cannot be used.
        num_images: pictures that rows refer to.
        lengths: tokens of each part of every example, before anything is cut: ``prompt``, ``response``, ``whole``.
        num_tokens: tokens in the micro-batches, shared ones counted once.
        room: tokens that the micro-batches could hold; 0 where there are none.
        shown: examples to look at.
    """

    source: OpenSource
    num_rows: int = 0
    is_whole: bool = True
    num_used: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    lost: dict[str, Loss] = field(default_factory=dict)
    num_images: int = 0
    lengths: dict[str, list[int]] = field(default_factory=dict)
    num_tokens: int = 0
    room: int = 0
    shown: list[Outcome] = field(default_factory=list)


class Piece(NamedTuple):
    """A part of an example, as a model meets it.

    Args:
        title: what it is: ``prompt``, ``chosen``, ``rejected``, ``text`` ...
        tokens: token ids.
        trained: one bool per token; True = the token is trained on (its log-probability counts).
    """

    title: str
    tokens: list[int]
    trained: list[bool]


def inspect(data: StreamedDataModule, split: str, max_rows: int = 2000, num_shown: int = 3) -> Iterator[SourceReport]:
    """Look at the rows of every source of a split.

    A source of more than ``max_rows`` rows is sampled all over, without reading it whole.

    Args:
        data: knows the sources and what becomes of their rows.
        split: ``train``, ``validation``, ``test`` or ``predict``.
        max_rows: rows to read of each source.
        num_shown: examples to keep for a look.

    Raises:
        ValueError: if the split is not set or a source cannot be read.
    """
    maker = BatchMaker(data.task())
    for source in data.sources(split):
        report = SourceReport(source)
        rows = RowOrder([source], data.seed, shuffle_buffer=max_rows).rows(0)
        sample = list(islice(rows, max_rows))
        report.is_whole = next(rows, None) is None
        sample.sort(key=lambda row: _place(row.address))
        for start in range(0, len(sample), data.batch_size):
            _add(report, maker, sample[start : start + data.batch_size], num_shown)
        yield report


def pieces(outcome: Outcome, data: StreamedDataModule) -> list[Piece]:
    """The parts of an example, in the order in which a model meets them.

    Args:
        outcome: an example that is not lost.
        data: makes batches of such examples.
    """
    batch = data.task().pack([outcome], {}, Cursor())
    if isinstance(batch, PromptBatch):
        tokens = list(batch.prompts[0].tokens)
        return [Piece("prompt", tokens, [False] * len(tokens))]
    (part,) = batch.micro_batches
    forest: Forest = part.forest
    tokens, trained = forest.tokens.tolist(), [False] * forest.num_tokens
    for target in forest.targets.tolist():
        trained[target] = True
    titles = dict(zip(forest.leaves, _titles(part, isinstance(batch, InstructionBatch)), strict=True))
    return [
        Piece(titles.get(number, "prompt"), tokens[start : start + length], trained[start : start + length])
        for number, (start, length) in enumerate(zip(forest.starts, forest.lengths, strict=True))
    ]


def visible(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[tuple[str, bool]]:
    """Decode tokens for a person, every special token by its name.

    Args:
        tokenizer: that made them.
        tokens: token ids.

    Returns:
        Pieces of text, and for each whether it is a special token.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    found: list[tuple[str, bool]] = []
    for is_special, run in groupby(tokens, key=special.__contains__):
        if is_special:
            found += [(str(tokenizer.convert_ids_to_tokens(token)), True) for token in run]
        else:
            found.append((str(tokenizer.decode(list(run), clean_up_tokenization_spaces=False)), False))
    return found


def _titles(part: Any, is_text: bool) -> list[str]:
    """What each sequence of a micro-batch is called."""
    if isinstance(part, UnpairedResponses):
        return ["thumb up" if label else "thumb down" for label in part.labels.tolist()]
    if isinstance(part, PreferencePairs):
        better, worse = set(part.chosen.tolist()), set(part.rejected.tolist())
        return [
            "in between" if number in better & worse else "chosen" if number in better else "rejected"
            for number in range(part.forest.num_sequences)
        ]
    return ["text"] * part.forest.num_sequences


def _add(report: SourceReport, maker: BatchMaker[Any, Any, Any], rows: Sequence[Row], num_shown: int) -> None:
    """Add what becomes of some rows."""
    report.num_rows += len(rows)
    kept = []
    for outcome in maker.outcomes(rows):
        if outcome.record is not None:
            report.forms[outcome.record.form] += 1
            report.num_images += len(outcome.record.images)
        if outcome.whole is not None:
            for name, length in maker.task.lengths(outcome.whole).items():
                report.lengths.setdefault(name, []).append(length)
        if outcome.error is not None:
            reason = outcome.error.reason
            seen = report.lost.get(reason, Loss(0, outcome.row.address, str(outcome.error)))
            report.lost[reason] = seen._replace(num_rows=seen.num_rows + 1)
        else:
            kept.append(outcome)
            report.truncated.update(outcome.tokens.truncated)
    report.num_used += len(kept)
    report.shown += kept[: max(0, num_shown - len(report.shown))]
    notes = maker.task.pack(kept, {}, Cursor()).notes
    report.num_tokens += notes.get("tokens", 0)
    report.room += notes.get("room", 0)


def _place(address: str) -> tuple[str, int]:
    """Order of addresses: by file, then by number."""
    file, _, number = address.replace("@", ":").rpartition(":")
    return (file, int(number)) if number.isdigit() else (address, 0)
