"""What the tests of the algorithms share: ragged pairs, batches, modules, a Trainer that remembers what it logs."""

from __future__ import annotations

from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader

from datamodules.packing import TokenPair, pack_pairs
from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.models.options import BackboneConfig, LoraOptions


class Memory(Logger):
    """Keeps what is logged: one dictionary per call, with its step."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name, version = "memory", 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append({"step": step, **metrics})

    def column(self, name):
        """All values of a metric, in order."""
        return [row[name] for row in self.rows if name in row]


def tokens(length, seed):
    return [6 + (seed * 31 + at * at * 7 + at * seed) % 314 for at in range(length)]


@pytest.fixture(scope="session")
def make_pairs():
    """Ragged pairs of tokens; a pair's number fixes it."""

    def make(number, start=0):
        return [
            TokenPair(
                tokens(2 + row * 5 % 9, row),
                tokens(1 + row * 3 % 8, 1000 + row),
                tokens(1 + row * 7 % 10, 2000 + row),
                margin=row % 3 / 2,
                row=f"train:{row + 1}",
                source="train",
            )
            for row in range(start, start + number)
        ]

    return make


@pytest.fixture(scope="session")
def make_batches(make_pairs):
    """Batches of ``size`` pairs out of ``number``, packed to a token budget."""

    def make(number, size, token_budget=10**6):
        pairs = make_pairs(number)
        return [pack_pairs(pairs[at : at + size], token_budget) for at in range(0, number, size)]

    return make


@pytest.fixture
def make_module(tiny_llama):
    """DPOModules on the tiny Llama, seeded; ``backbone`` and ``lora`` are settings of theirs."""

    def make(backbone=None, lora=None, lr=0.5, optimizer=torch.optim.SGD, seed=0, **options):
        torch.manual_seed(seed)
        config = {"name_or_path": str(tiny_llama()), "fused": False, **(backbone or {})}
        lora = LoraOptions(**{"r": 4, "alpha": 16, **(lora or {})})
        options.setdefault("optimizer", partial(optimizer, lr=lr))
        return DPOModule(BackboneConfig(**config, lora=lora), **options)

    return make


@pytest.fixture
def make_trainer(tmp_path):
    """Quiet Trainers on one CPU that log every step into a Memory."""

    def make(**options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1, "logger": Memory()}
        return lightning.Trainer(**{"default_root_dir": tmp_path, **quiet, **defaults, **options})

    return make


@pytest.fixture
def fit(make_trainer):
    """Trains a module on batches; returns the Trainer, whose logger remembers."""

    def run(module, batches, ckpt_path=None, validation=None, **options):
        trainer = make_trainer(**options)
        trainer.fit(module, loader(batches), validation and loader(validation), ckpt_path=ckpt_path)
        return trainer

    return run


def loader(batches):
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


@pytest.fixture(scope="session")
def make_loader():
    """A DataLoader over ready-made batches."""
    return loader


@pytest.fixture(scope="session")
def trained_weights():
    """Copies of what a module trains, by name."""
    return lambda module: {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
