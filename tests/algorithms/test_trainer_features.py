"""What the Trainer and Lightning's callbacks can do works, or is refused with a reason: docs/trainer_features.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    RichProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner

from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.rollout.options import UpdateOptions

PAGE = (Path(__file__).parents[2] / "docs" / "trainer_features.md").read_text(encoding="utf-8")
NUM_BATCHES = 4
METRIC = {"sft": "val/loss", "ppo": "val/score"}


class Feature(NamedTuple):
    """A feature, and how to see that it does something.

    Args:
        options: of the Trainer.
        num_steps: optimizer steps that are taken.
        changes: whether the weights differ from those of a plain run.
        refused: what algorithms that take their steps by hand say instead, if they do.
        seen: what holds of the Trainer afterwards.
    """

    options: dict[str, Any]
    num_steps: int = NUM_BATCHES
    changes: bool = False
    refused: str = ""
    seen: Callable[[Any], bool] = lambda trainer: True


def num_validations(trainer: Any) -> int:
    return sum(any(name.startswith("val/") for name in row) for row in trainer.logger.rows)


def early_stopping(kind: str) -> EarlyStopping:
    return EarlyStopping(METRIC[kind], stopping_threshold=1e9, mode="min")


FEATURES: dict[str, Callable[[str], Feature]] = {
    "max_epochs": lambda kind: Feature({"max_epochs": 2}, 8, changes=True),
    "max_steps": lambda kind: Feature({"max_steps": 3}, 3, changes=True),
    "max_time": lambda kind: Feature({"max_time": timedelta(0), "max_epochs": -1}, 0, changes=True),
    "limit_train_batches": lambda kind: Feature({"limit_train_batches": 2}, 2, changes=True),
    "limit_val_batches": lambda kind: Feature(
        {"limit_val_batches": 0}, seen=lambda trainer: not num_validations(trainer)
    ),
    "overfit_batches": lambda kind: Feature({"overfit_batches": 1, "max_epochs": 2}, 2, changes=True),
    "val_check_interval": lambda kind: Feature(
        {"val_check_interval": 1}, seen=lambda trainer: num_validations(trainer) == NUM_BATCHES
    ),
    "gradient_clip_val": lambda kind: Feature({"gradient_clip_val": 1e-3}, changes=True, refused="gradient clipping"),
    "accumulate_grad_batches": lambda kind: Feature(
        {"accumulate_grad_batches": 2}, 2, changes=True, refused="gradient accumulation"
    ),
    "precision": lambda kind: Feature({"precision": "bf16-mixed"}, changes=True),
    "inference_mode": lambda kind: Feature({"inference_mode": False}),
    "deterministic": lambda kind: Feature({"deterministic": True}),
    "detect_anomaly": lambda kind: Feature({"detect_anomaly": True, "limit_train_batches": 1}, 1, changes=True),
    "profiler": lambda kind: Feature(
        {"profiler": "simple"},
        seen=lambda trainer: "[Strategy]SingleDeviceStrategy.training_step" in trainer.profiler.recorded_durations,
    ),
    "reload_dataloaders_every_n_epochs": lambda kind: Feature(
        {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, 8, changes=True
    ),
    "EarlyStopping": lambda kind: Feature({"callbacks": early_stopping(kind), "max_epochs": 3}),
    "LearningRateMonitor": lambda kind: Feature(
        {"callbacks": LearningRateMonitor()},
        seen=lambda trainer: any(name.startswith("lr-SGD") for row in trainer.logger.rows for name in row),
    ),
    "StochasticWeightAveraging": lambda kind: Feature(
        {"callbacks": StochasticWeightAveraging(0.05, swa_epoch_start=1), "max_epochs": 3}, 12, changes=True
    ),
    "EMAWeightAveraging": lambda kind: Feature({"callbacks": EMAWeightAveraging(decay=0.5)}, changes=True),
    "DeviceStatsMonitor": lambda kind: Feature(
        {"callbacks": DeviceStatsMonitor(cpu_stats=True)},
        seen=lambda trainer: any(name.startswith("DeviceStats") for row in trainer.logger.rows for name in row),
    ),
    "RichProgressBar": lambda kind: Feature({"callbacks": RichProgressBar(), "enable_progress_bar": True}),
    "GradientAccumulationScheduler": lambda kind: Feature(
        {"callbacks": GradientAccumulationScheduler({0: 2})},
        2,
        changes=True,
        refused="GradientAccumulationScheduler",
    ),
}


@pytest.fixture(autouse=True)
def _nothing_stays_switched_on():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def run(make_module, make_text_batches, make_policy, make_prompts, fit, trained_weights):
    """``run(kind, **options)``: the Trainer after a few batches, and the weights."""

    def go(kind: str, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        if kind == "sft":
            module, batches = make_module(kind=SFTModule), make_text_batches(2 * NUM_BATCHES, 2)
        else:
            updates = UpdateOptions(num_epochs=1, num_minibatches=1)
            module = make_policy(updates=updates, sampling={"max_new_tokens": 4})
            batches = make_prompts(2 * NUM_BATCHES, 2)
        trainer = fit(module, batches, validation=batches[:1], **{"num_sanity_val_steps": 0, **options})
        return trainer, trained_weights(module)

    return go


_plain: dict[str, dict[str, torch.Tensor]] = {}


@pytest.mark.parametrize("kind", ["sft", "ppo"])
@pytest.mark.parametrize("name", FEATURES)
def test_it_does_what_it_says_or_is_refused(name, kind, run):
    feature = FEATURES[name](kind)
    if kind == "ppo" and feature.refused:
        with pytest.raises((MisconfigurationException, RuntimeError), match=feature.refused):
            run(kind, **feature.options)
        return
    if kind not in _plain:
        _plain[kind] = run(kind)[1]
    trainer, weights = run(kind, **feature.options)
    assert trainer.global_step == feature.num_steps
    assert feature.seen(trainer)
    is_same = all(torch.equal(weight, _plain[kind][key]) for key, weight in weights.items())
    assert is_same != feature.changes


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_a_fast_dev_run_leaves_nothing(kind, run, tmp_path):
    trainer, _ = run(kind, fast_dev_run=True, enable_checkpointing=True, logger=True)
    assert trainer.global_step == 1
    assert list(tmp_path.iterdir()) == []


def test_the_learning_rate_finder_suggests_one_and_leaves_the_module_as_it_was(
    make_module, make_text_batches, make_trainer, make_loader, trained_weights
):
    module = make_module(kind=SFTModule)
    trainer = make_trainer()
    finder = Tuner(trainer).lr_find(
        module, make_loader(make_text_batches(64, 2)), update_attr=False, num_training=20, early_stop_threshold=None
    )
    assert 1e-8 < finder.suggestion(skip_begin=1, skip_end=1) < 1
    assert trainer.global_step == 0
    assert all((weight == 0).all() for name, weight in trained_weights(module).items() if "lora_B" in name)


def test_a_compiled_module_is_refused(make_module, make_text_batches, fit):
    with pytest.raises(ValueError, match="give the Trainer the module itself"):
        fit(torch.compile(make_module(kind=SFTModule)), make_text_batches(2, 2))


def test_the_page_says_the_same():
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+) \| ([^|]+) \|", PAGE, re.MULTILINE)
    said = {name: (plain.strip(), by_hand.strip()) for name, plain, by_hand in rows}
    refused = {name for name, make in FEATURES.items() if make("ppo").refused}
    tried = {*FEATURES, "fast_dev_run"}
    assert tried <= said.keys()
    for name in tried:
        plain, by_hand = said[name]
        assert plain.startswith("works"), name
        assert by_hand.startswith("refused" if name in refused else "works"), name
