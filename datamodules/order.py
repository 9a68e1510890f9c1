"""The order of rows: a function of the seed, the epoch and the data alone, which can be entered anywhere.

1. The units of each source come in the order of a permutation; those of a source of weight 2 twice. Such a sequence of
   units is a *lane*. A lane of weight 0.25 leaves out three quarters of the rows of each block.
2. The blocks of each lane are spread evenly over the epoch, so that all lanes end together. When ``shuffle_buffer``
   rows are held, they are a *window*, which is shuffled as a whole.
3. Every draw is made from (seed, epoch, number of the window or of the unit). So where the lanes stood when a window
   was begun, and how many rows of it are consumed, is all that has to be known to go on: one window is read again.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from datamodules.sources import OpenSource, Row

_WINDOW_BYTES = 1 << 26  # a window of huge rows ends here, so that memory stays bounded


class Window(NamedTuple):
    """Rows that are shuffled together.

    Args:
        number: how many windows of the epoch precede it.
        places: where each lane stood when it was begun, as plain JSON.
        rows: the rows in their final order.
    """

    number: int
    places: tuple[Any, ...]
    rows: list[Row]


class Lane:
    """The units of one source in the order of an epoch.

    Args:
        source: where rows come from.
        key: text that draws of this lane are made from, the same in every epoch.
        epoch: number of the epoch; None keeps units in file order.
        share: part of the rows of each block to keep, above 0, at most 1.
    """

    def __init__(self, source: OpenSource, key: str, epoch: int | None, share: float = 1.0) -> None:
        self.source = source
        self.key = key
        self.epoch = epoch
        self.share = share
        self.place: list[Any] | None = [0, None, 0]  # units done, place in the next, rows of it done; None at the end

    def open(self, place: list[Any] | None = None) -> None:
        """Go to a place, or to the beginning."""
        self.place = list(place) if place else [0, None, 0]
        self._blocks = self._read()

    def next_rows(self) -> tuple[list[Row], int] | None:
        """The rows of the next block and their bytes; None at the end."""
        found = next(self._blocks, None)
        if found is None:
            self.place = None
        return found

    @property
    def left(self) -> float | None:
        """Blocks that are left, roughly and more than none; None if nobody knows."""
        if self.place is None or self._sizes_from is None:
            return None
        if not self._order:
            return 0.01
        number, place, _ = self.place
        return max(0.01, (self.source.size(self._order[number], place) or 0.0) + self._sizes_from[number + 1])

    @property
    def due(self) -> float | None:
        """When the next block is to come, from -1 at the beginning of the epoch to 0 at its end; None if nobody knows.

        Blocks are spread evenly over the epoch, from a random phase on.
        """
        left = self.left
        if left is None or self._sizes_from is None:
            return None
        return (self._phase - left) / max(left, self._sizes_from[0])

    @cached_property
    def num_rows(self) -> int | None:
        """Rows of an epoch; None if only reading everything would tell."""
        if self.share == 1:
            return self.source.num_rows
        total = 0
        for unit in range(self.source.num_units):
            counts = self.source.counts(unit)
            if counts is None:
                return None
            done = 0
            for count in counts:
                total += self._num_kept(count, unit, done)
                done += count
        return total

    @cached_property
    def _phase(self) -> float:
        return random.Random(f"{self.key}/{self.epoch}/phase").random()

    @cached_property
    def _order(self) -> Sequence[int]:
        units = array("q", range(self.source.num_units))
        if self.epoch is not None:
            random.Random(f"{self.key}/{self.epoch}").shuffle(units)
        return units

    @cached_property
    def _sizes_from(self) -> Sequence[float] | None:
        """Blocks of each unit and those after it, roughly, and 0 at the end; None if nobody knows."""
        sizes = [self.source.size(unit) for unit in reversed(self._order)]
        if None in sizes:
            return None
        return array("d", accumulate((size or 0.0 for size in sizes), initial=0.0))[::-1]

    def _read(self) -> Iterator[tuple[list[Row], int]]:
        assert self.place is not None
        first, place, done = self.place
        for number in range(first, len(self._order)):
            unit = self._order[number]
            for block in self.source.blocks(unit, place, done):
                rows = self._thin(self.source.rows(block), unit, done)
                done += len(block.rows)
                self.place = [number, block.place, done]
                yield rows, block.num_bytes
            place, done = None, 0

    def _thin(self, rows: list[Row], unit: int, done: int) -> list[Row]:
        """Keep a random part of a block, in order."""
        if self.share == 1:
            return rows
        rng = random.Random(f"{self.key}/{self.epoch}/{unit}/{done}")
        kept = rng.sample(range(len(rows)), self._num_kept(len(rows), unit, done))
        return [rows[index] for index in sorted(kept)]

    def _num_kept(self, num_rows: int, unit: int, done: int) -> int:
        """How many rows of a block to keep: rounded at random, but alike in every epoch, so that epochs are as long."""
        return int(num_rows * self.share + random.Random(f"{self.key}/{unit}/{done}").random())


@dataclass(frozen=True)
class RowOrder:
    """The order in which the rows of an epoch come.

    Args:
        sources: where rows come from.
        seed: seed of the order.
        shuffle_buffer: rows that are shuffled together. 0 reads the sources one after another, in file order, each row
            once whatever the weights.
    """

    sources: Sequence[OpenSource]
    seed: int = 0
    shuffle_buffer: int = 0

    @cached_property
    def num_rows(self) -> int | None:
        """Rows of an epoch; None if a source does not know its length."""
        counts = [lane.num_rows for lane in self._lanes(epoch=0)]
        return None if None in counts else sum(filter(None, counts))

    def windows(self, epoch: int, number: int = 0, places: Sequence[Any] = ()) -> Iterator[Window]:
        """Yield the windows of an epoch.

        Args:
            epoch: number of the epoch.
            number: the window to begin with.
            places: where the lanes stood when it was begun; empty for the first.

        Raises:
            ValueError: if there are not as many places as lanes.
        """
        lanes = self._lanes(epoch)
        if places and len(places) != len(lanes):
            raise ValueError(f"the position holds {len(places)} places, but the data have {len(lanes)} lanes")
        for lane, place in zip(lanes, places or [[0, None, 0]] * len(lanes), strict=True):
            lane.open(place)
            lane.place = place and lane.place  # an empty place is the end of the lane
        while True:
            begun = tuple(lane.place for lane in lanes)
            rng = random.Random(f"{self.seed}/{epoch}/{number}")  # text seeds are hashed alike by every process
            if not (rows := self._gather(lanes, rng)):
                return
            if self.shuffle_buffer:
                rng.shuffle(rows)
            yield Window(number, begun, rows)
            number += 1

    def rows(self, epoch: int) -> Iterator[Row]:
        """Yield the rows of an epoch."""
        for window in self.windows(epoch):
            yield from window.rows

    def _gather(self, lanes: Sequence[Lane], rng: random.Random) -> list[Row]:
        """Rows of the next window, not yet shuffled; none at the end of the epoch."""
        rows: list[Row] = []
        num_bytes = 0
        num_blocks = 0
        while going := [lane for lane in lanes if lane.place is not None]:
            fullness = max(len(rows) / max(1, self.shuffle_buffer), num_bytes / _WINDOW_BYTES)
            if fullness >= 1 and not self._is_last(going, num_blocks, fullness):
                break
            lane = self._draw(going, rng) if self.shuffle_buffer else going[0]
            num_blocks += 1
            if found := lane.next_rows():
                rows += found[0]
                num_bytes += found[1]
        return rows

    def _is_last(self, lanes: Sequence[Lane], num_blocks: int, fullness: float) -> bool:
        """Whether so little is left after a full window that it would make a poor window by itself."""
        if not self.shuffle_buffer or fullness >= 1.5:
            return False
        left = [lane.left for lane in lanes]
        return None not in left and 2 * sum(filter(None, left)) < num_blocks

    def _draw(self, lanes: Sequence[Lane], rng: random.Random) -> Lane:
        """The lane whose next block is due first; one of unknown length comes as often as the others do on average."""
        unknown = [lane for lane in lanes if lane.due is None]
        if unknown and rng.random() * len(lanes) < len(unknown):
            return rng.choice(unknown)
        return min((lane for lane in lanes if lane not in unknown), key=lambda lane: lane.due or 0.0)

    def _lanes(self, epoch: int) -> list[Lane]:
        """Lanes of all sources, at their beginning."""
        if not self.shuffle_buffer:
            return [Lane(source, str(number), None) for number, source in enumerate(self.sources)]
        lanes = []
        for number, source in enumerate(self.sources):
            passes, part = divmod(source.weight, 1)
            shares = [1.0] * int(passes) + [part] * (part > 0)
            lanes += [
                Lane(source, f"{self.seed}/{number}/{repetition}", epoch, share)
                for repetition, share in enumerate(shares)
            ]
        return lanes
