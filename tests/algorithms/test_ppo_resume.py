"""A PPO run that was killed anywhere and resumed ends as one that was not, to the bit."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from functools import partial

import pytest
import torch

from datamodules import PromptDataModule
from lit_rlhf.callbacks.checkpoints import IterationCheckpoint
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.schedules import WarmupDecay

ROWS = [{"prompt": f"Question {n}: what is {n} and {n}?"} for n in range(10)]
VARIETIES = {
    "adapter": {},
    "shared": {"critic": CriticOptions(kind="shared", lr_factor=1.0)},
    "4 bits": {"backbone": {"quantization": "nf4"}},
    "everything": {"lora": {"enabled": False}, "critic": CriticOptions(kind="model", lr_factor=1.0)},
}
PLACES = ("rollout", "score", "update", "save")
"""Where a process is killed."""


def letters(response):
    return len(response) % 5 - 2.0


def train(make_policy, make_trainer, tokenizer, folder, ckpt_path=None, seed=0, plant=None, **options):
    """Three epochs of iterations of four prompts; ``plant`` may break something of the module first."""
    data = PromptDataModule(
        train=ROWS, validation=ROWS[:3], tokenizer=copy.deepcopy(tokenizer), batch_size=4, shuffle_buffer=5
    )
    module = make_policy(
        rewards=[WeightedReward(FunctionReward(letters))],
        kl=KLOptions(coef=0.2, target=0.5, horizon=50),
        scores=ScoreOptions(normalise="running"),
        updates=UpdateOptions(num_epochs=2, num_minibatches=2),
        optimizer=torch.optim.AdamW,
        lr_scheduler=partial(WarmupDecay, warmup_steps=2, decay="cosine"),
        **{"lr": 5e-3, "seed": seed, **options},
    )
    saver = IterationCheckpoint(folder, every_n_iterations=1, save_top_k=-1)
    trainer = make_trainer(
        callbacks=[saver, RandomState()], enable_checkpointing=True, max_epochs=3, default_root_dir=folder
    )
    if plant is not None:
        plant(module, trainer)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


def assert_equal_runs(again, resumed, whole, unbroken):
    ours = again.state_dict()
    for name, value in whole.state_dict().items():
        if not name.startswith("iterations.means"):
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    for name in ("rollout/score", "rollout/kl", "rollout/kl_coef", "train/lr", "train/grad_norm", "val/score"):
        found, wanted = resumed.logger.column(name), unbroken.logger.column(name)
        assert found == wanted[len(wanted) - len(found) :], name


@pytest.mark.parametrize("variety", VARIETIES)
def test_resumed_equals_unbroken(make_policy, make_trainer, tiny_tokenizer, tmp_path, variety):
    run = partial(train, make_policy, make_trainer, tiny_tokenizer, **VARIETIES[variety])
    whole, unbroken = run(tmp_path / "whole")
    total = int(whole.iterations.number)
    assert total == 9
    assert len(set(unbroken.logger.column("rollout/kl_coef"))) > 1
    for stop in range(1, total) if variety == "adapter" else (4,):
        path = tmp_path / "whole" / f"iteration-{stop}.ckpt"
        again, resumed = run(tmp_path / f"resumed{stop}", ckpt_path=path)
        assert_equal_runs(again, resumed, whole, unbroken)


def kill_at(place, iteration):
    """A plant that kills this process with SIGKILL at a place of an iteration."""

    def plant(module, trainer):
        def dying(plain):
            def call(*args, **kwargs):
                if int(module.iterations.number) == iteration and trainer.training:
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(*args, **kwargs)

            return call

        if place == "rollout":
            collector = module.iterations.collector
            collector.sampler.__class__.__call__ = dying(collector.sampler.__class__.__call__)
        elif place == "score":
            module._read = dying(module._read)
        elif place == "update":
            module._losses = dying(module._losses)
        else:
            trainer.strategy.checkpoint_io.save_checkpoint = dying(trainer.strategy.checkpoint_io.save_checkpoint)

    return plant


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_killed_anywhere(make_policy, make_trainer, tiny_tokenizer, tmp_path):
    """SIGKILL in sampling, scoring, updating and saving; ``last.ckpt`` goes on each time, and ends the same."""
    run = partial(train, make_policy, make_trainer, tiny_tokenizer)
    whole, unbroken = run(tmp_path / "whole")
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "killed"
    for number, place in enumerate(PLACES):
        last = folder / "last.ckpt"
        plant = kill_at(place, 2 * number + 1)
        ckpt_path = last if last.exists() else None
        process = context.Process(target=partial(run, folder, plant=plant, ckpt_path=ckpt_path))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, place
        assert last.exists()
    again, resumed = run(folder, ckpt_path=folder / "last.ckpt")
    assert_equal_runs(again, resumed, whole, unbroken)
