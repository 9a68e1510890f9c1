"""The moving mean: what came before, and never the iteration itself but for the first."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.rollout.baselines import MovingMean


def test_it_is_that_of_the_iterations_before():
    usual = MovingMean(momentum=0.75)
    found = [float(usual(torch.tensor(mean))) for mean in (3.0, 5.0, -100.0)]
    assert found == pytest.approx([3.0, 3.0, (0.75 * 3.0 + 5.0) / 1.75])


def test_without_momentum_it_is_that_of_the_iteration_before():
    usual = MovingMean(momentum=0.0)
    assert [float(usual(torch.tensor(mean))) for mean in (3.0, 5.0, 7.0)] == [3.0, 3.0, 5.0]


def test_it_is_part_of_checkpoints_and_stays_in_float32():
    usual = MovingMean(momentum=0.5).bfloat16()
    usual(torch.tensor(1.001))
    again = MovingMean(momentum=0.5)
    again.load_state_dict(usual.state_dict())
    assert again.past.dtype == usual.past.dtype == torch.float32
    assert float(again(torch.tensor(0.0))) == pytest.approx(1.001, abs=1e-6)


@pytest.mark.parametrize("momentum", [1.0, -0.1])
def test_a_momentum_that_forgets_nothing_or_more_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum is {momentum}"):
        MovingMean(momentum)
