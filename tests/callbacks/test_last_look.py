"""A short run ends with a look at the held-out rows; a long one looks when it is told to."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_rlhf.callbacks.last_look import LastLook


class Looks(Callback):
    def __init__(self):
        self.at = []

    def on_validation_start(self, trainer, pl_module):
        self.at.append(trainer.fit_loop.total_batch_idx + 1)


@pytest.mark.parametrize(
    ("interval", "options", "looks"),
    [
        (50, {"max_epochs": 2}, [6]),
        (50, {"max_steps": 4, "max_epochs": -1}, [4]),
        (50, {"max_steps": 2, "max_epochs": -1, "accumulate_grad_batches": 2}, [3]),
        (50, {"max_steps": 3, "max_epochs": -1, "accumulate_grad_batches": 2}, [5]),
        (4, {"max_epochs": 2}, [4]),
        (6, {"max_epochs": 2}, [6]),
        (None, {"max_epochs": 2}, [3, 6]),
        (50, {"max_epochs": 2, "limit_val_batches": 0}, []),
        (50, {"max_epochs": 100, "max_steps": 60, "limit_train_batches": 40}, [50]),
    ],
)
def test_when_it_looks(interval, options, looks, tmp_path):
    seen = Looks()
    every = {} if interval is None else {"val_check_interval": interval, "check_val_every_n_epoch": None}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", logger=False, num_sanity_val_steps=0, callbacks=[LastLook(), seen],
        default_root_dir=tmp_path, **{"limit_train_batches": 3, "limit_val_batches": 1, **every, **quiet, **options},
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert seen.at == looks
