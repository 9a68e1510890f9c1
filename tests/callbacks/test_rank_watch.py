"""A rank that fails, is killed or hangs ends the others soon, and they say which it was."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
import time

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lit_rlhf.callbacks.rank_watch import DIED, RankWatch

PATIENCE = 2.0


def fail():
    raise FloatingPointError("the loss is not finite in train:7")


ENDS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "failed": fail,
    "late": lambda: time.sleep(1.5 * PATIENCE),
}


class Line(lightning.LightningModule):
    """Fits a line; one rank comes to its end in the third step."""

    def __init__(self, end, ending):
        super().__init__()
        self.layer, self.end, self.ending = torch.nn.Linear(1, 1), end, ending

    def training_step(self, batch, batch_idx):
        if batch_idx == 2 and self.global_rank == self.ending:
            ENDS[self.end]()
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def as_rank(rank, port, folder, end, ending):
    torch.set_num_threads(1)
    sys.stderr = (folder / f"rank{rank}.txt").open("w", buffering=1)
    ours = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in ours.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    watch = RankWatch(PATIENCE)
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, callbacks=[watch], max_epochs=1, logger=False, **quiet
    )
    trainer.fit(Line(end, ending), DataLoader(torch.ones(8, 1), batch_size=1))


def run(end, ending, folder):
    """Exit statuses and last words of both ranks."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=as_rank, args=(rank, port, folder, end, ending)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    ranks[1 - ending].join(60)
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        if end == "late":
            rank.join(60)
        rank.kill()
        rank.join()
    statuses = [rank.exitcode if status is None else status for rank, status in zip(ranks, statuses, strict=True)]
    return statuses, [(folder / f"rank{rank}.txt").read_text() for rank in range(2)]


@pytest.mark.parametrize("ending", [1, 0])
def test_a_rank_that_is_killed(ending, tmp_path):
    statuses, said = run("killed", ending, tmp_path)
    assert statuses[ending] == -signal.SIGKILL
    assert statuses[1 - ending] not in (None, 0, -signal.SIGKILL)
    assert re.search(rf"rank {1 - ending} ends: rank {ending} (has shown no sign of life|is gone)", said[1 - ending])


def test_a_rank_that_hangs(tmp_path):
    statuses, said = run("stopped", 1, tmp_path)
    assert statuses[0] == DIED
    assert "rank 0 ends: rank 1 has shown no sign of life for 2 seconds: it was killed or hangs" in said[0]
    assert "go on from the last checkpoint" in said[0]


def test_a_rank_that_fails_tells_why(tmp_path):
    statuses, said = run("failed", 1, tmp_path)
    assert statuses[0] not in (None, 0)
    assert "rank 1 failed: FloatingPointError: the loss is not finite in train:7" in said[0]
    assert "FloatingPointError: the loss is not finite in train:7" in said[1]


def test_a_rank_that_is_slow_is_waited_for(tmp_path):
    statuses, said = run("late", 1, tmp_path)
    assert statuses == [0, 0], said


def test_one_process_watches_nobody(tmp_path):
    watch = RankWatch()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, callbacks=[watch], max_epochs=1, logger=False, **quiet)
    trainer.fit(Line("failed", 1), DataLoader(torch.ones(2, 1)))
    assert watch._watch is None


@pytest.mark.parametrize("patience", [0.0, -1.0])
def test_no_patience_is_refused(patience):
    with pytest.raises(ValueError, match="it is positive, 60 usual"):
        RankWatch(patience)
