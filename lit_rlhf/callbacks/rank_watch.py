"""A rank that dies ends the whole run soon, and every rank says which one it was.

Without this the others wait in a collective for what never comes: with gloo until its connection breaks, with NCCL
until its timeout, half an hour. Each rank shows a sign of life to a store of its own, in a thread, and looks for those
of the others.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from datetime import timedelta
from threading import Event, Thread

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed as dist

DIED = 75
"""Exit status of a rank that ends because another one did (EX_TEMPFAIL: going on from a checkpoint may succeed)."""


class RankWatch(Callback):
    """Ends all ranks when one has failed, was killed, or shows no sign of life.

    Where there is one process it does nothing.

    Args:
        patience_seconds: how long a rank may show no sign of life. What it computes does not hold its sign of life up.

    Raises:
        ValueError: if that is not positive.
    """

    def __init__(self, patience_seconds: float = 60.0) -> None:
        if patience_seconds <= 0:
            raise ValueError(f"patience_seconds is {patience_seconds}; it is positive, 60 usual")
        self.patience_seconds = patience_seconds
        self._watch: _Watch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch, as soon as there are other ranks."""
        if trainer.world_size > 1 and self._watch is None:
            self._watch = _Watch(trainer, self.patience_seconds)
            self._watch.start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the other ranks; or, where a connection broke, tell which of them is gone."""
        if self._watch is None:
            return
        if isinstance(exception, dist.DistError) or "gloo/transport" in str(exception):
            exception.add_note(f"rank {trainer.global_rank} ends: {self._watch.find_out()}")
        else:
            self._watch.tell(f"{type(exception).__name__}: {exception}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching; that a rank is through is no death."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None


class _Watch(Thread):
    """Shows signs of life, and looks for those of the others."""

    def __init__(self, trainer: Trainer, patience: float) -> None:
        super().__init__(name="rank-watch", daemon=True)
        self.rank, self.patience = trainer.global_rank, patience
        self.store = _store(trainer)
        self.is_over = Event()
        self.seen = {other: (0, time.monotonic()) for other in range(trainer.world_size) if other != self.rank}

    def run(self) -> None:
        """Look around several times within the patience, until stopped."""
        while not self.is_over.wait(self.patience / 10):
            news = self.look()
            if news and not self.is_over.is_set():
                self.end(news)

    def find_out(self) -> str:
        """What has become of another rank, where a connection broke; looks for it as long as the patience lasts."""
        self.is_over.set()
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5 * self.patience:
            if news := self.look():
                return news
            time.sleep(self.patience / 10)
        return "a connection to another rank broke, and all of them are alive"

    def look(self) -> str:
        """What has become of another rank; empty while all live."""
        try:
            return self._look()
        except dist.DistError as error:  # the first rank holds the store
            return f"rank 0 is gone ({str(error).splitlines()[0]:.80})"

    def _look(self) -> str:
        self.store.add(f"alive/{self.rank}", 1)
        for other, (count, since) in self.seen.items():
            if self.store.check([f"failed/{other}"]):
                return f"rank {other} failed: {self.store.get(f'failed/{other}').decode()}"
            now = self.store.add(f"alive/{other}", 0)
            if now != count:
                self.seen[other] = (now, time.monotonic())
            elif time.monotonic() - since > self.patience and not self.store.check([f"done/{other}"]):
                return f"rank {other} has shown no sign of life for {self.patience:g} seconds: it was killed or hangs"
        return ""

    def tell(self, what: str) -> None:
        """Tell the others why this rank ends."""
        self.is_over.set()
        self.store.set(f"failed/{self.rank}", what)

    def stop(self) -> None:
        """Be through; the first rank waits for the others, as it holds the store."""
        if self.is_over.is_set():
            return
        self.is_over.set()
        with suppress(dist.DistError):
            self.store.set(f"done/{self.rank}", "")
            if self.rank == 0:
                self.store.wait([f"done/{other}" for other in self.seen], timedelta(seconds=self.patience))

    def end(self, news: str) -> None:
        """End this process: its main thread may wait in a collective that nothing wakes it from."""
        print(f"error: rank {self.rank} ends: {news}; go on from the last checkpoint", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(DIED)


def _store(trainer: Trainer) -> dist.Store:
    """A store of this watch alone, held by the first rank: the process group's own is busy while ranks meet."""
    host, size, limit = os.environ.get("MASTER_ADDR", "127.0.0.1"), trainer.world_size, timedelta(seconds=30)
    if trainer.is_global_zero:
        store = dist.TCPStore(host, 0, size, is_master=True, timeout=limit, wait_for_workers=False)
        trainer.strategy.broadcast(store.port)
        return store
    return dist.TCPStore(host, trainer.strategy.broadcast(0), size, is_master=False, timeout=limit)
