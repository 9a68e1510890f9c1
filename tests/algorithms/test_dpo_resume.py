"""A run that was stopped anywhere and resumed ends as one that was not, to the bit."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import PreferenceDataModule
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.losses import aot_loss
from lit_rlhf.losses.terms import LossTerm
from lit_rlhf.models.options import ReferenceOptions
from lit_rlhf.schedules import WarmupDecay

ROWS = [
    {"prompt": f"Question {n}: what is {n} and {n}?", "chosen": f" It is {2 * n}.", "rejected": " No" + "o" * (n % 5)}
    for n in range(17)
]
VARIETIES = {
    "plain": {},
    "moving_reference": {"reference": ReferenceOptions(sync_steps=2)},
    "cached_reference": {"reference": ReferenceOptions(cache=True)},
    "accumulated": {"losses": [LossTerm(aot_loss)]},
    "adapter_of_pissa": {"lora": {"init": "pissa", "dropout": 0.3}},
}


class PlantedError(Exception):
    """Planted."""


@pytest.mark.parametrize("kind", VARIETIES)
def test_resumed_equals_unbroken(make_module, make_trainer, tiny_tokenizer, tmp_path, kind):
    def run(folder, stop_at=None, ckpt_path=None, seed=0):
        data = PreferenceDataModule(
            train=ROWS, tokenizer=copy.deepcopy(tiny_tokenizer), batch_size=4, token_budget=120, shuffle_buffer=5
        )
        schedule = partial(WarmupDecay, warmup_steps=2, decay="cosine")
        options = {"lora": {"dropout": 0.3}, **VARIETIES[kind]}
        module = make_module(optimizer=torch.optim.AdamW, lr=1e-2, lr_scheduler=schedule, seed=seed, **options)
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(
            callbacks=[saver, RandomState()],
            enable_checkpointing=True,
            max_epochs=2,
            log_every_n_steps=2,
            accumulate_grad_batches=2 if kind == "accumulated" else 1,
            default_root_dir=tmp_path / folder,
        )
        if stop_at is not None:
            plain = module.optimizer_step

            def stopping(*args, **kwargs):
                if module.global_step == stop_at:
                    raise PlantedError
                plain(*args, **kwargs)

            module.optimizer_step = stopping
            with pytest.raises(PlantedError):
                trainer.fit(module, data)
        else:
            trainer.fit(module, data, ckpt_path=ckpt_path)
        return module, trainer

    whole, unbroken = run("whole")
    total = 6 if kind == "accumulated" else 10
    assert unbroken.global_step == total
    for stop in (1, 4) if kind == "accumulated" else (2, 5):  # inside an epoch, and at its end
        run(f"stopped{stop}", stop_at=stop)
        again, resumed = run(f"stopped{stop}", ckpt_path=tmp_path / f"stopped{stop}" / f"step={stop}.ckpt", seed=9)
        for name, parameter in whole.named_parameters():
            assert torch.equal(parameter, dict(again.named_parameters())[name]), f"{name}, resumed at {stop}"
        for name in ("train/loss", "train/rewards/margin", "train/lr", "train/grad_norm"):
            ours, wanted = resumed.logger.column(name), unbroken.logger.column(name)
            assert ours == wanted[len(wanted) - len(ours) :], f"{name}, resumed at {stop}"
            assert len(ours) == total // 2 - stop // 2
