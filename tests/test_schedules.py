"""Schedules: their shape by hand, under a Trainer's count of steps, and across a restart."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.schedules import WarmupDecay


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
