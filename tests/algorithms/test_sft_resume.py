"""A run that was killed anywhere and resumed ends as one that was not, to the bit, with dropout on."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import SFTDataModule
from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.schedules import WarmupDecay

ROWS = [{"prompt": f"Question {n}: what is {n} and {n}?", "completion": f" It is {2 * n}."} for n in range(17)]
VARIETIES = {
    "adapter": {},
    "accumulated": {"accumulated": 2, "average": "sequences"},
    "4 bits": {"backbone": {"quantization": "nf4"}, "label_smoothing": 0.1},
    "whole": {"lora": {"enabled": False}},
}
PLACES = ("training_step", "optimizer_step", "validation_step", "save_checkpoint")
"""Where a process is killed."""


def train(make_module, make_trainer, tokenizer, folder, ckpt_path=None, seed=0, plant=None, accumulated=1, **options):
    """Two epochs of steps of four texts; ``plant`` may break something of the module first."""
    data = SFTDataModule(
        train=ROWS,
        validation=ROWS[:3],
        tokenizer=copy.deepcopy(tokenizer),
        batch_size=4 // accumulated,
        token_budget=90,
        shuffle_buffer=5,
    )
    schedule = partial(WarmupDecay, warmup_steps=2, decay="cosine")
    options = {"lora": {"dropout": 0.3}, "lr_scheduler": schedule, "lr": 1e-2, **options}
    module = make_module(kind=SFTModule, optimizer=torch.optim.AdamW, seed=seed, **options)
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True)
    trainer = make_trainer(
        callbacks=[saver, RandomState()],
        enable_checkpointing=True,
        max_epochs=2,
        log_every_n_steps=2,
        val_check_interval=0.5,
        accumulate_grad_batches=accumulated,
        default_root_dir=folder,
    )
    if plant is not None:
        plant(module, trainer)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


def assert_equal_runs(again, resumed, whole, unbroken):
    ours = again.state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, msg=name)
    for name in ("train/loss", "train/token_accuracy", "train/lr", "train/grad_norm", "val/loss"):
        found, wanted = resumed.logger.column(name), unbroken.logger.column(name)
        assert found == wanted[len(wanted) - len(found) :], name
        assert found, name


@pytest.mark.parametrize("variety", VARIETIES)
def test_resumed_equals_unbroken(make_module, make_trainer, tiny_tokenizer, tmp_path, variety):
    run = partial(train, make_module, make_trainer, tiny_tokenizer, **VARIETIES[variety])
    whole, unbroken = run(tmp_path / "whole")
    assert unbroken.global_step == 10
    assert len(set(unbroken.logger.column("train/loss"))) == 5
    for stop in (2, 5, 8) if variety == "adapter" else (4,):  # inside an epoch, and at its end
        again, resumed = run(tmp_path / f"resumed{stop}", ckpt_path=tmp_path / "whole" / f"step={stop}.ckpt", seed=9)
        assert_equal_runs(again, resumed, whole, unbroken)


def kill_at(place, step):
    """A plant that kills this process with SIGKILL at a place, once so many steps are done."""

    def plant(module, trainer):
        holder = trainer.strategy.checkpoint_io if place == "save_checkpoint" else module
        plain = vars(type(holder))[place]

        def dying(*args, **kwargs):
            if trainer.global_step >= step:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(holder, *args, **kwargs)

        setattr(holder, place, dying)

    return plant


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_killed_anywhere(make_module, make_trainer, tiny_tokenizer, tmp_path):
    """SIGKILL in four places of one run; ``last.ckpt`` goes on each time, and ends the same."""
    run = partial(train, make_module, make_trainer, tiny_tokenizer)
    whole, unbroken = run(tmp_path / "whole")
    context = multiprocessing.get_context("fork")
    folder, last = tmp_path / "killed", tmp_path / "killed" / "last.ckpt"
    for number, place in enumerate(PLACES):
        ckpt_path = last if last.exists() else None
        plant = kill_at(place, 2 * number + 2)
        process = context.Process(target=partial(run, folder, plant=plant, ckpt_path=ckpt_path, seed=number))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, place
        assert last.exists()
    again, resumed = run(folder, ckpt_path=last, seed=9)
    assert_equal_runs(again, resumed, whole, unbroken)
