"""Rows to step batches: a stream that goes on from any batch, and whose batches depend on its order alone.

A *global batch* is what all ranks together consume in one optimizer step: the next B rows of the epoch. Rank r takes
every world-th row of it, from the r-th; worker w of W makes every W-th batch. So neither the number of ranks nor of
workers nor the token budget changes which rows a step sees. All of them find every row; each decodes only its own.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.order import RowOrder
from datamodules.sources import Row
from lit_rlhf.types import Cursor

B = TypeVar("B")


class StepStream(IterableDataset[B], Generic[B]):
    """Step batches of one epoch, from where ``cursor`` stands to its end; or without an end.

    Args:
        order: the rows.
        make_batch: makes a batch from the rows of this rank and the cursor after it.
        batch_size: rows per step, over all ranks.
        rank: number of this process.
        world_size: number of processes.

    Attributes:
        cursor: where to begin; read whenever an iteration begins.
        is_endless: whether it goes on with the next epoch, and the one after it.
    """

    def __init__(
        self,
        order: RowOrder,
        make_batch: Callable[[Sequence[Row], Cursor], B],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order = order
        self.make_batch = make_batch
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.cursor = Cursor()
        self.is_endless = False

    def __iter__(self) -> Iterator[B]:
        """Yield the batches that this rank and worker make.

        Raises:
            ValueError: if the epoch has no rows.
        """
        worker = get_worker_info()
        turn, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        batches = (endless_batches if self.is_endless else global_batches)(self.order, self.cursor, self.batch_size)
        for rows, cursor in islice(batches, turn, None, num_workers):
            yield self.make_batch(rows[self.rank :: self.world_size], cursor)

    def num_batches(self) -> int | None:
        """Batches of a whole epoch; None if a source does not know its length."""
        num_rows = self.order.num_rows
        return None if num_rows is None else math.ceil(num_rows / self.batch_size)


def global_batches(order: RowOrder, cursor: Cursor, batch_size: int) -> Iterator[tuple[list[Row], Cursor]]:
    """Yield the rows of each step over all ranks, and where the stream goes on after them.

    Args:
        order: the rows.
        cursor: where to begin.
        batch_size: rows per step.

    Raises:
        ValueError: if the epoch has no rows, or ends before the cursor.
    """
    windows = order.windows(cursor.epoch, cursor.window, cursor.places)
    window, taken, number = next(windows, None), cursor.taken, cursor.batch
    if window is None or taken > len(window.rows):
        names = ", ".join(source.name for source in order.sources)
        raise ValueError(f"the data end before {cursor}; {names} changed" if number else f"no rows in {names}")
    while window is not None:
        rows: list[Row] = []
        while window is not None and len(rows) < batch_size:
            more = window.rows[taken : taken + batch_size - len(rows)]
            rows += more
            taken += len(more)
            if taken == len(window.rows):  # look ahead, to know whether the epoch is over
                window, taken = next(windows, None), 0
        number += 1
        if window is None:
            yield rows, Cursor(cursor.epoch + 1)
        else:
            yield rows, Cursor(cursor.epoch, number, window.number, taken, window.places)


def endless_batches(order: RowOrder, cursor: Cursor, batch_size: int) -> Iterator[tuple[list[Row], Cursor]]:
    """Yield what :func:`global_batches` does, epoch after epoch; no batch holds rows of two epochs.

    Args:
        order: the rows.
        cursor: where to begin.
        batch_size: rows per step.

    Raises:
        ValueError: if an epoch has no rows, or ends before the cursor.
    """
    while True:
        for rows, cursor in global_batches(order, cursor, batch_size):  # noqa: B020 - the last one begins the next epoch
            yield rows, cursor


class StepLoader(DataLoader[Any]):
    """Loads a stream; knows its length where the data does. Its place is kept by the data module."""

    dataset: StepStream[Any]
    is_length_wanted: bool = True
    """Whether ``len`` may count the rows of text files; without a length, an epoch ends where the rows end."""

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the stream begins.

        Raises:
            TypeError: if the data do not know their length or it is not wanted, as the protocol of ``len`` wants it.
        """
        num_batches = self.dataset.num_batches() if self.is_length_wanted else None
        if num_batches is None:
            raise TypeError("the number of rows is not known, or not wanted")
        return num_batches

    def state_dict(self) -> dict[str, Any]:
        """Nothing, and thereby tell Lightning that resuming is taken care of."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the data module sets the cursor of the stream."""


def load_steps(stream: StepStream[Any], num_workers: int = 0, is_length_wanted: bool = True) -> StepLoader:
    """Load the batches of a stream.

    Args:
        stream: the batches.
        num_workers: processes that make them; 0 makes them in this one.
        is_length_wanted: whether ``len`` may count the rows, which reads text files once.
    """
    # Lightning cannot know that the workers share the length of this stream among them.
    warnings.filterwarnings("ignore", message=".*IterableDataset.* has .__len__. defined")
    # torch's default collate_fn, and pinned memory, would turn the tuples inside a batch into lists.
    loader = StepLoader(
        stream,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # of its own: an iterator draws a seed, which training must not notice
    )
    loader.is_length_wanted = is_length_wanted
    return loader


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(worker: int) -> None:
    """Keep the tokenizer's own threads out of a forked worker, and share tensors by name.

    Else each one holds a file open until it is used, and a batch of some hundred pictures has more than a process may.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.multiprocessing.set_sharing_strategy("file_system")
