"""Rows to step batches: a stream whose n-th batch of epoch e depends on (seed, e, n) alone.

A *global batch* is what all ranks together consume in one optimizer step: rows [n * B, (n + 1) * B) of the epoch.
Rank r takes every world-th row of it, from the r-th; worker w of W makes every W-th batch. So neither the number of
ranks nor of workers nor the token budget changes which rows a step sees.
"""

from __future__ import annotations

import math
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.packing import TokenPair, pack_pairs
from datamodules.records import BadRowError, PreferenceRecord, read_preference
from datamodules.sources import OpenSource, Row, take
from datamodules.tokenization import PairTexts, PairTokenizer, TooLongError
from lit_rlhf.types import PreferenceBatch

OnBadRow = Literal["raise", "drop"]


@dataclass(frozen=True)
class RowOrder:
    """The order in which the rows of an epoch come.

    Args:
        sources: where rows come from.
        seed: seed of the order.
        shuffle_buffer: rows held to draw from. 0 reads the sources one after another, in file order.
    """

    sources: Sequence[OpenSource]
    seed: int = 0
    shuffle_buffer: int = 0

    def num_rows(self) -> int | None:
        """Rows of an epoch; None if a source does not know its length."""
        counts = [source.num_rows for source in self.sources]
        if None in counts:
            return None
        return sum(map(_num_shown, self.sources)) if self.shuffle_buffer else sum(filter(None, counts))

    def rows(self, epoch: int) -> Iterator[Row]:
        """Yield the rows of an epoch."""
        if not self.shuffle_buffer:
            for source in self.sources:
                yield from source.read()
            return
        rng = random.Random(f"{self.seed}/{epoch}")  # text seeds are hashed alike by every process
        mixture = _sampled(self.sources[0], rng) if len(self.sources) == 1 else self._mix(rng)
        held: list[Row] = []
        for row in mixture:
            if len(held) < self.shuffle_buffer:
                held.append(row)
                continue
            at = rng.randrange(len(held))
            yield held[at]
            held[at] = row
        rng.shuffle(held)
        yield from held

    def _mix(self, rng: random.Random) -> Iterator[Row]:
        """Interleave the sources evenly: each is drawn in proportion to the rows that it has left."""
        left = [_num_shown(source) for source in self.sources]
        streams = [_sampled(source, random.Random(rng.random())) for source in self.sources]
        while any(left):
            (drawn,) = rng.choices(range(len(left)), left)
            left[drawn] -= 1
            yield next(streams[drawn])


def _num_shown(source: OpenSource) -> int:
    """Rows of a source that an epoch shows."""
    if source.num_rows is None:
        raise ValueError(
            f"the hub does not say how many rows {source.name!r} has, which weights and mixtures need; download it and "
            "give its files"
        )
    return max(1, round(source.num_rows * source.weight))


def _sampled(source: OpenSource, rng: random.Random) -> Iterator[Row]:
    """Yield each row of a source ``weight`` times: whole passes, then a random part of one, in order."""
    passes, part = divmod(source.weight, 1)
    for _ in range(int(passes)):
        yield from source.read()
    if not part:
        return
    wanted = _num_shown(source) - int(passes) * (source.num_rows or 0)
    for remaining, row in zip(range(source.num_rows or 0, 0, -1), source.read(), strict=False):
        if rng.random() * remaining < wanted:
            wanted -= 1
            yield row


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of one step from its rows.

    Args:
        tokenizer: turns records into tokens.
        token_budget: tokens per micro-batch.
        on_bad_row: ``raise`` stops at a row that cannot be used; ``drop`` counts it and goes on.
        name_sources: whether counts are kept apart by source.
        warned: reasons that were warned of; each is told once, with the first row.
    """

    tokenizer: PairTokenizer
    token_budget: int
    on_bad_row: OnBadRow
    name_sources: bool
    warned: set[str] = field(default_factory=set)

    def __call__(self, rows: Sequence[Row], cursor: tuple[int, int]) -> PreferenceBatch:
        """Read, tokenise and pack ``rows``.

        Raises:
            ValueError: naming the address of a bad row, unless bad rows are dropped.
        """
        notes: Counter[str] = Counter()
        read: list[tuple[Row, PreferenceRecord, PairTexts]] = []
        for row in rows:
            try:
                record = read_preference(row.decode())
                read.append((row, record, self.tokenizer.render(record)))
            except BadRowError as error:
                self._drop(row, error, notes)
            except ValueError as error:
                raise ValueError(f"{row.address}: {error}") from None
        pairs: list[TokenPair] = []
        tokens = self.tokenizer.encode([texts for _, _, texts in read])
        for (row, record, _), whole in zip(read, tokens, strict=True):
            try:
                pair = self.tokenizer.fit(whole)
            except BadRowError as error:
                self._drop(row, error, notes)
                continue
            notes.update(self._key("truncated", what, row) for what in pair.truncated)
            ids = pair.prompt, pair.chosen, pair.rejected
            pairs.append(TokenPair(*ids, record.margin, row.address, row.source))
        return pack_pairs(pairs, self.token_budget, notes, cursor)

    def _drop(self, row: Row, error: BadRowError, notes: Counter[str]) -> None:
        message = f"{row.address}: {error}"
        if isinstance(error, TooLongError):
            if error.reason not in self.warned:
                warnings.warn(f"dropped {message}; others like it will be counted", stacklevel=2)
            self.warned.add(error.reason)
        elif self.on_bad_row == "raise":
            raise ValueError(
                f"{message}; mend the row, or set data.on_bad_row=drop to drop and count such rows"
            ) from None
        notes[self._key("dropped", error.reason, row)] += 1

    def _key(self, what: str, reason: str, row: Row) -> str:
        return f"{what}/{reason}/{row.source}" if self.name_sources else f"{what}/{reason}"


class StepStream(IterableDataset[PreferenceBatch]):
    """Step batches of one epoch, from where ``cursor`` stands to its end.

    Args:
        order: the rows.
        make_batch: makes a batch from rows.
        batch_size: rows per step, over all ranks.
        rank: number of this process.
        world_size: number of processes.

    Attributes:
        cursor: (epoch, batches of it to skip); read whenever an iteration begins.
    """

    def __init__(
        self, order: RowOrder, make_batch: BatchMaker, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.order = order
        self.make_batch = make_batch
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.cursor = (0, 0)

    def __iter__(self) -> Iterator[PreferenceBatch]:
        """Yield the batches that this rank and worker make.

        Raises:
            ValueError: if the epoch has no rows.
        """
        epoch, done = self.cursor
        worker = get_worker_info()
        turn, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rows = self.order.rows(epoch)
        number, batch_rows = 0, take(rows, self.batch_size)
        if not batch_rows:
            raise ValueError(f"no rows in {', '.join(source.name for source in self.order.sources)}")
        while batch_rows:
            following = take(rows, self.batch_size)
            if number >= done and (number - done) % num_workers == turn:
                cursor = (epoch, number + 1) if following else (epoch + 1, 0)
                yield self.make_batch(batch_rows[self.rank :: self.world_size], cursor)
            number, batch_rows = number + 1, following

    def num_batches(self) -> int | None:
        """Batches of a whole epoch; None if a source does not know its length."""
        num_rows = self.order.num_rows()
        return None if num_rows is None else math.ceil(num_rows / self.batch_size)


class StepLoader(DataLoader[PreferenceBatch]):
    """Loads a stream; knows its length where the data does. Its place is kept by the data module."""

    dataset: StepStream

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the stream begins.

        Raises:
            TypeError: if the data do not know their length, as the protocol of ``len`` wants it.
        """
        num_batches = self.dataset.num_batches()
        if num_batches is None:
            raise TypeError("a source of the hub does not say how many rows it has")
        return num_batches

    def state_dict(self) -> dict[str, Any]:
        """Nothing, and thereby tell Lightning that resuming is taken care of."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the data module sets the cursor of the stream."""


def load_steps(stream: StepStream, num_workers: int = 0) -> StepLoader:
    """Load the batches of a stream.

    Args:
        stream: the batches.
        num_workers: processes that make them; 0 makes them in this one.
    """
    # Lightning cannot know that the workers share the length of this stream among them.
    warnings.filterwarnings("ignore", message=".*IterableDataset.* has .__len__. defined")
    # torch's default collate_fn, and pinned memory, would turn the tuples inside a batch into lists.
    return StepLoader(
        stream,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # of its own: an iterator draws a seed, which training must not notice
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    """Keep the tokenizer's own threads out of a forked worker."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
