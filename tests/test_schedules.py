"""Schedules: their shape by hand, under a Trainer's count of steps, and across a restart."""

from __future__ import annotations

import math
from functools import partial

import lightning
import pytest
import torch

from lit_rlhf.schedules import ParameterGroup, WarmupDecay, optimization


def schedule(steps=math.inf, lr=2.0, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    return WarmupDecay(optimizer, **options).over(steps)


def rates(made, steps):
    seen = []
    for _ in range(steps):
        seen.append(made.optimizer.param_groups[0]["lr"])
        made.optimizer.step()
        made.step()
    return seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decay": "constant"}, [2, 2, 2, 2, 2]),
        ({"decay": "constant", "warmup_steps": 2}, [1, 2, 2, 2, 2]),
        ({"decay": "linear"}, [2, 1.6, 1.2, 0.8, 0.4]),
        ({"decay": "linear", "warmup_steps": 0.4}, [1, 2, 2, 4 / 3, 2 / 3]),
        ({"decay": "linear", "final_fraction": 0.5}, [2, 1.8, 1.6, 1.4, 1.2]),
        ({"decay": "cosine", "warmup_steps": 1}, [2, 2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)]),
        ({"decay": "constant", "warmup_steps": 0.1}, [2, 2, 2, 2, 2]),  # half a step: nothing to rise over
    ],
)
def test_rates_by_hand(options, expected):
    assert rates(schedule(5, **options), 5) == pytest.approx(expected)


def test_it_stays_at_the_floor_after_the_end():
    made = schedule(3, decay="linear", final_fraction=0.25)
    assert rates(made, 6)[3:] == pytest.approx([0.5] * 3)


def test_a_restart_goes_on_and_may_be_longer():
    whole = rates(schedule(8, warmup_steps=2, decay="linear"), 8)
    first = schedule(8, warmup_steps=2, decay="linear")
    rates(first, 3)
    again = schedule(8, warmup_steps=2, decay="linear")
    again.load_state_dict(first.state_dict())
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(again, 5) == pytest.approx(whole[3:])
    longer = schedule(80, warmup_steps=2, decay="linear")
    longer.load_state_dict(first.state_dict())
    assert longer.total_steps == 80


def test_its_state_is_plain_numbers():
    assert not [value for value in schedule(5).state_dict().values() if callable(value)]


def test_an_unknown_length_is_refused_only_where_it_counts():
    for options in ({"decay": "linear"}, {"decay": "cosine"}, {"decay": "constant", "warmup_steps": 0.1}):
        with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
            schedule(math.inf, **options)
    assert rates(schedule(math.inf, decay="constant", warmup_steps=4), 3) == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("options", [{"warmup_steps": -1}, {"final_fraction": 1.5}, {"final_fraction": -0.1}])
def test_settings_out_of_range(options):
    with pytest.raises(ValueError, match="must"):
        schedule(5, **options)


class Line(lightning.LightningModule):
    """One trained weight and a frozen one, with the optimizer and schedule that are tested."""

    def __init__(self, lr_scheduler):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.frozen = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.lr_scheduler, self.rates = lr_scheduler, []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.weight

    def configure_optimizers(self):
        return optimization(self, partial(torch.optim.SGD, lr=1.0), self.lr_scheduler)


@pytest.mark.parametrize(
    ("lr_scheduler", "expected"),
    [
        (partial(WarmupDecay, decay="linear"), [1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]),
        (partial(WarmupDecay, warmup_steps=0.5), [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]),
    ],
    ids=["linear", "warmup", "of_torch"],
)
def test_one_optimizer_and_one_schedule_over_optimizer_steps(tmp_path, lr_scheduler, expected):
    module = Line(lr_scheduler)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, max_epochs=2, accumulate_grad_batches=2, default_root_dir=tmp_path, **quiet
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(4)))
    assert module.rates == pytest.approx(expected)
    assert [p for group in trainer.optimizers[0].param_groups for p in group["params"]] == [module.weight]
    assert float(module.frozen) == 1.0


class Iterating(Line):
    """Three optimizer steps by hand for each batch, over two groups and an empty one; the schedule is stepped once."""

    def __init__(self, lr_scheduler):
        super().__init__(lr_scheduler)
        self.automatic_optimization = False
        self.other = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        for _ in range(3):
            self.manual_backward(self.weight + self.other)
            self.optimizers().step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        groups = [ParameterGroup([self.weight]), ParameterGroup([]), ParameterGroup([self.other], 10.0)]
        return optimization(self, partial(torch.optim.SGD, lr=1.0), self.lr_scheduler, groups, steps_per_batch=3)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"max_epochs": 2}, [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"max_epochs": -1, "max_steps": 12}, [1.0, 0.75, 0.5, 0.25]),
        ({"max_epochs": 1, "max_steps": 6}, [1.0, 0.5]),
        ({"max_epochs": 1, "max_steps": 30}, [1.0, 0.75, 0.5, 0.25]),
        ({"max_epochs": 1, "max_steps": 5}, [1.0, 0.5]),
    ],
)
def test_a_schedule_per_batch_reaches_its_end_when_the_run_does(tmp_path, length, expected):
    """Where a batch has many optimizer steps, which ``max_steps`` counts; each group at its own rate."""
    module = Iterating(partial(WarmupDecay, decay="linear"))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet, **length)
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(4)))
    assert [rates[0] for rates in module.rates] == pytest.approx(expected)
    assert [rates[1] for rates in module.rates] == pytest.approx([10 * rate for rate in expected])
    groups = [group["params"] for group in trainer.optimizers[0].param_groups]
    assert groups == [[module.weight], [module.other]]
    assert float(module.frozen) == 1.0
