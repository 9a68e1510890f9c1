"""The score head: near 0 at first, float32 whatever happens around it, one number out of several objectives."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.models.heads.score_head import ScoreHead

STATES = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


def test_it_starts_near_zero_and_without_a_bias():
    torch.manual_seed(0)
    head = ScoreHead(4096, {"score": 1.0})
    assert head.bias is None
    assert float(head.weight.detach().std()) == pytest.approx(1 / math.sqrt(4097), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_stays_in_float32(dtype):
    head = ScoreHead(64, {"score": 1.0})
    head.measure(1.23456789, 2.3456789, 7)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.to(dtype)
    torch.testing.assert_close(dict(head.state_dict()), before, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(STATES.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, STATES.to(dtype).float() @ head.weight.T, rtol=1e-6, atol=1e-6)


def test_it_moves_between_devices():
    assert ScoreHead(8, {"score": 1.0}).to("meta").weight.device.type == "meta"


def test_objectives_are_summed_by_weight():
    head = ScoreHead(64, {"helpful": 0.5, "short": -2.0}, bias=True)
    torch.nn.init.normal_(head.bias)
    both = head(STATES)
    torch.testing.assert_close(head.combine(both), 0.5 * both[:, 0] - 2.0 * both[:, 1])
    whole = head.collapsed()
    torch.testing.assert_close(whole(STATES)[:, 0], head.combine(both))
    assert whole.objectives == {"score": 1.0}


def test_one_objective_with_a_weight_is_weighed():
    head = ScoreHead(64, {"score": 3.0})
    torch.testing.assert_close(head.combine(head(STATES)), 3.0 * head(STATES)[:, 0])


def test_scores_are_normalised_once_their_spread_is_known():
    head = ScoreHead(64, {"score": 1.0})
    with pytest.raises(ValueError, match=r"train it with data\.validation set"):
        head.normalise(torch.tensor([3.0]))
    head.measure(1.0, 0.5, 10)
    assert head.normalise(torch.tensor([3.0])).tolist() == [4.0]
    assert head.collapsed().normalise(torch.tensor([3.0])).tolist() == [4.0]
    head.measure(1.0, 0.0, 10)
    assert not head.is_measured


@pytest.mark.parametrize("objectives", [{}, {"a": 0.0}, {"a": math.nan}])
def test_objectives_without_weight_are_refused(objectives):
    with pytest.raises(ValueError, match="give at least one name with a weight other than 0"):
        ScoreHead(4, objectives)
