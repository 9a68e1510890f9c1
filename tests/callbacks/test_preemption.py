"""Runs in processes of their own that are told to go: by SIGTERM, by SLURM, by Ctrl-C; twice, and one rank of two."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lit_rlhf.callbacks.checkpoints import IterationCheckpoint, StepCheckpoint
from lit_rlhf.callbacks.preemption import Preemption
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.checkpoints.folder import newest_valid
from lit_rlhf.checkpoints.plugin import SafeCheckpointIO
from lit_rlhf.checkpoints.reading import read

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
pytestmark = pytest.mark.skipif(FORK is None, reason="needs fork")
NUM_STEPS = 12


class Slow(lightning.LightningModule):
    """Counts its steps and validation batches in a file, and takes its time."""

    def __init__(self, folder, pause, automatic=True):
        super().__init__()
        self.automatic_optimization = automatic
        self.folder, self.pause = folder, pause
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def note(self, what):
        with (self.folder / "log").open("a") as log:
            log.write(what)
        time.sleep(self.pause)

    def training_step(self, batch, batch_idx):
        self.note("t")
        loss = (self.weight - torch.randn(3)).square().sum()
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.note("v")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def train(folder, pause=0.0, automatic=True, ckpt_path=None, requeue=False, **options):
    torch.manual_seed(0)
    saver = StepCheckpoint(folder / "kept") if automatic else IterationCheckpoint(folder / "kept", 1000)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=2,
        callbacks=[RandomState(), saver, Preemption(requeue)],
        plugins=[SafeCheckpointIO()],
        **{**quiet, "limit_val_batches": 0, "num_sanity_val_steps": 0, **options},
    )
    module = Slow(folder, pause, automatic)
    batches = partial(DataLoader, range(NUM_STEPS // 2), generator=torch.Generator())
    trainer.fit(module, batches(), batches(), ckpt_path=ckpt_path)
    return module.weight.detach()


def run(folder, words, environment, options):
    """What a process does: its output goes to a file."""
    os.environ.update(environment)
    output = os.open(folder / "output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.getLogger("lightning.pytorch").addHandler(logging.StreamHandler(os.fdopen(2, "w", buffering=1)))
    train(folder, *words, **options)


def start(folder, environment=None, pause=0.05, **options):
    folder.mkdir(exist_ok=True)
    process = FORK.Process(target=run, args=(folder, (pause,), environment or {}, options))
    process.start()
    return process


def wait_for(folder, text):
    """Until the run's notes begin with a text."""
    until = time.monotonic() + 60
    while not ((folder / "log").exists() and (folder / "log").read_text().startswith(text)):
        time.sleep(0.002)
        assert time.monotonic() < until


def leave(process, number, folder, text="ttt"):
    """Send a signal once the run has come so far; how it left, and what it said."""
    wait_for(folder, text)
    os.kill(process.pid, number)
    process.join(60)
    return process.exitcode, (folder / "output").read_text()


def steps_of(folder):
    return read(newest_valid(folder / "kept").path)["global_step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights at the end of a run that nobody disturbed."""
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130)])
def test_it_saves_the_step_and_leaves(tmp_path, whole, name, status):
    found, said = leave(start(tmp_path), signal.Signals[name], tmp_path)
    assert found == status
    assert f"{name}: saving at the end of this step, then leaving; once more leaves at once" in said
    assert steps_of(tmp_path) == (tmp_path / "log").read_text().count("t") < NUM_STEPS
    assert torch.equal(train(tmp_path, ckpt_path=tmp_path / "kept" / "last.ckpt"), whole)


def test_an_iteration_is_ended_first(tmp_path):
    found, said = leave(start(tmp_path, automatic=False), signal.SIGTERM, tmp_path)
    done = (tmp_path / "log").read_text().count("t")
    assert found == 143
    assert f"SIGTERM: saved and left after iteration {done}" in said
    assert steps_of(tmp_path) == done


def test_a_step_that_accumulates_is_ended_first(tmp_path):
    found, _ = leave(start(tmp_path, accumulate_grad_batches=3), signal.SIGTERM, tmp_path, "tttt")
    assert found == 143
    assert (tmp_path / "log").read_text() == "t" * 6
    assert steps_of(tmp_path) == 2


def test_a_validation_is_ended_first(tmp_path):
    process = start(tmp_path, limit_val_batches=3, val_check_interval=4, check_val_every_n_epoch=None)
    assert leave(process, signal.SIGTERM, tmp_path, "ttttv")[0] == 143
    assert (tmp_path / "log").read_text() == "ttttvvv"
    assert steps_of(tmp_path) == 4


def test_a_step_with_a_validation_behind_it_is_not_left_before_that(tmp_path):
    process = start(tmp_path, pause=0.3, limit_val_batches=1, val_check_interval=4, check_val_every_n_epoch=None)
    assert leave(process, signal.SIGTERM, tmp_path, "tttt")[0] == 143
    assert (tmp_path / "log").read_text() == "ttttv"


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    process = start(tmp_path, limit_val_batches=2, num_sanity_val_steps=-1)
    assert leave(process, signal.SIGTERM, tmp_path, "v")[0] == 143
    assert "left before the first step" in (tmp_path / "output").read_text()
    assert not (tmp_path / "kept").exists()


def test_a_second_signal_leaves_at_once(tmp_path):
    process = start(tmp_path, pause=60)
    wait_for(tmp_path, "t")
    os.kill(process.pid, signal.SIGTERM)
    while "once more" not in (tmp_path / "output").read_text():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == -signal.SIGTERM
    assert not (tmp_path / "kept").exists()


def test_all_ranks_leave_together(tmp_path):
    """The signal reaches the second of two ranks alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "GROUP_RANK": "0"}
        place |= {"TORCHELASTIC_RUN_ID": "test"}
        options = {
            "devices": 2,
            "strategy": DDPStrategy(process_group_backend="gloo"),
            "use_distributed_sampler": False,
        }
        ranks.append(start(tmp_path, place, **options))
    assert leave(ranks[1], signal.SIGUSR1, tmp_path, "tttttt")[0] == 138
    ranks[0].join(30)
    assert ranks[0].exitcode == 138
    assert (tmp_path / "log").read_text().count("t") == 2 * steps_of(tmp_path)


@pytest.mark.parametrize("requeue", [True, False])
def test_slurm_is_asked_for_another_start(tmp_path, requeue):
    asked, script = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    script.chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "77", "SLURM_NTASKS_PER_NODE": "1"}
    slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    slurm |= {"PATH": f"{script.parent}:{os.environ['PATH']}"}
    found, said = leave(start(tmp_path, slurm, requeue=requeue), signal.SIGUSR1, tmp_path)
    assert found == 138
    assert list(tmp_path.glob("hpc_ckpt*")) == [], "Lightning would have saved in the middle of a step"
    assert asked.exists() is requeue
    if requeue:
        assert asked.read_text() == "requeue 77\n"
        assert "requeued job 77" in said
    else:
        assert "its command line would have to say --ckpt_path=auto" in said
    (tmp_path / "log").unlink()
    assert leave(start(tmp_path, slurm, ckpt_path=tmp_path / "kept" / "last.ckpt"), signal.SIGTERM, tmp_path)[0] == 143
    assert asked.exists() is requeue, "SIGTERM asks for nothing"


def test_the_handlers_from_before_are_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    train(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
