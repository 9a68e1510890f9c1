"""A run that was stopped anywhere and resumed ends as one that was not, to the bit; checkpoints hold what is needed."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import PreferenceDataModule
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.losses import regression_loss, step_loss
from lit_rlhf.losses.reward_terms import RewardTerm
from lit_rlhf.schedules import WarmupDecay

PAIRS = [
    {"prompt": f"Question {n}: what is {n} and {n}?", "chosen": f" It is {2 * n}.", "rejected": " No" + "o" * (n % 5)}
    for n in range(9)
]
GRADED = [{"prompt": f"Question {n}?", "response": f" It is {2 * n}.", "good": n % 3, "short": n % 2} for n in range(9)]
STEPS = [
    {"prompt": f"Sum of {n}?", "completions": ["First.", f"It is {n}."], "labels": [True, n % 2 == 0]} for n in range(9)
]
VARIETIES = {
    "pairs": (PAIRS, {}, {"lora": {"dropout": 0.3}}, 1),
    "objectives": (
        GRADED,
        {"kind": "graded", "objectives": ["good", "short"]},
        {"losses": [RewardTerm(regression_loss)], "objectives": {"good": 1.0, "short": -0.5}},
        2,
    ),
    "steps_in_4_bits": (
        STEPS,
        {"kind": "steps"},
        {"losses": [RewardTerm(step_loss)], "backbone": {"quantization": "nf4"}},
        1,
    ),
    "full": (PAIRS, {}, {"lora": {"enabled": False}}, 1),
}


class PlantedError(Exception):
    """Planted."""


@pytest.mark.parametrize("variety", VARIETIES)
def test_resumed_equals_unbroken(make_reward, make_trainer, tiny_tokenizer, tmp_path, variety):
    rows, reading, options, accumulated = VARIETIES[variety]

    def run(folder, stop_at=None, ckpt_path=None, seed=0):
        data = PreferenceDataModule(
            train=rows,
            validation=rows[:5],
            tokenizer=copy.deepcopy(tiny_tokenizer),
            batch_size=4 // accumulated,
            token_budget=90,
            shuffle_buffer=5,
            **reading,
        )
        schedule = partial(WarmupDecay, warmup_steps=2, decay="cosine")
        module = make_reward(optimizer=torch.optim.AdamW, lr=1e-2, lr_scheduler=schedule, seed=seed, **options)
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(
            callbacks=[saver, RandomState()],
            enable_checkpointing=True,
            max_epochs=2,
            log_every_n_steps=2,
            accumulate_grad_batches=accumulated,
            default_root_dir=tmp_path / folder,
        )
        if stop_at is None:
            trainer.fit(module, data, ckpt_path=ckpt_path)
            return module, trainer
        plain = module.optimizer_step

        def stopping(*args, **kwargs):
            if module.global_step == stop_at:
                raise PlantedError
            plain(*args, **kwargs)

        module.optimizer_step = stopping
        with pytest.raises(PlantedError):
            trainer.fit(module, data)
        return module, trainer

    whole, unbroken = run("whole")
    total = unbroken.global_step
    assert total == 6
    assert whole.model.score.is_measured == (variety != "steps_in_4_bits")
    for stop in range(1, total) if variety == "pairs" else (4,):
        path = tmp_path / "whole" / f"step={stop}.ckpt"
        if stop == 2:
            run("stopped", stop_at=stop)
            path = tmp_path / "stopped" / f"step={stop}.ckpt"
        again, resumed = run(f"resumed{stop}", ckpt_path=path, seed=9)
        ours = again.model.state_dict()
        for name, value in whole.model.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0, equal_nan=True, msg=f"{name}, at {stop}")
        for name in ("train/loss", "train/lr", "train/grad_norm", "val/loss"):
            found, wanted = resumed.logger.column(name), unbroken.logger.column(name)
            assert found == wanted[len(wanted) - len(found) :], f"{name}, resumed at {stop}"
            assert found
