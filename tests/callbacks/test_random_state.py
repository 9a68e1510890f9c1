"""The random state in the checkpoint."""

from __future__ import annotations

import random
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

from lit_rlhf.callbacks.random_state import RandomState, random_state, set_random_state


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_a_state_that_is_set_again_draws_the_same():
    random.gauss(0, 1)  # leaves a spare value, which is part of the state
    state = random_state()
    first = draws()
    assert draws() != first
    set_random_state(state)
    assert draws() == first


class Dice(LightningModule):
    """Draws three numbers a step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[float, float, float]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(draws())
        return self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def roll(folder, *callbacks, ckpt_path=None):
    dice = Dice()
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, callbacks=[*callbacks, keep], default_root_dir=folder, **options)
    trainer.fit(dice, DataLoader(torch.zeros(3, 1)), ckpt_path=ckpt_path, weights_only=True)
    return dice.seen


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_a_resumed_run_draws_what_it_would_have_drawn(step, tmp_path):
    torch.manual_seed(5)
    whole = roll(tmp_path, RandomState())
    torch.manual_seed(6)
    random.seed(6)
    assert roll(tmp_path, RandomState(), ckpt_path=tmp_path / f"step={step}.ckpt") == whole[step:]


def test_without_it_a_resumed_run_draws_something_else(tmp_path):
    whole = roll(tmp_path)
    assert roll(tmp_path, ckpt_path=tmp_path / "step=2.ckpt") != whole[2:]


def test_another_number_of_processes_is_refused(tmp_path):
    callback = RandomState()
    callback.load_state_dict({"ranks": [random_state(), random_state()]})
    with pytest.raises(ValueError, match="written by 2 processes and this run has 1"):
        roll(tmp_path, callback)


def gathered(rank, port, folder):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    torch.save(RandomState().state_dict()["ranks"], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_every_process_keeps_its_own(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(gathered, (port, tmp_path), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for rank in range(2):
        assert torch.equal(first[rank]["torch"], second[rank]["torch"])
        assert torch.equal(first[rank]["torch"], torch.Generator().manual_seed(rank).get_state())
