"""Moments of scores: those of torch on all scores at once, whatever the split, and left out where undefined."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.metrics.moments import MOMENT_METRICS, ScoreMoments


def draw(number=200, mean=0.0):
    torch.manual_seed(0)
    lengths = torch.randint(1, 900, (number,))
    return mean + torch.randn(number) + 0.001 * lengths, lengths


def found(moments):
    return {name: float(value) for name, value in moments.compute().items()}


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("sizes", [[200], [1, 0, 120, 79]], ids=str)
def test_equal_to_torch_on_everything_at_once(mean, sizes):
    scores, lengths = draw(mean=mean)
    chosen, rejected = scores[:120] + 1, 2 * scores[80:]
    moments = ScoreMoments()
    for part in zip(scores.split(sizes), lengths.split(sizes), strict=True):
        moments.update(*part)
    moments.update(scores[:0], lengths[:0], chosen[:50], rejected[:50])
    moments.update(scores[:0], lengths[:0], chosen[50:], rejected[50:])
    double = scores.double()
    expected = {
        "scores/num_responses": 200.0,
        "scores/mean": double.mean(),
        "scores/std": double.std(),
        "scores/chosen_std": chosen.double().std(),
        "scores/rejected_std": rejected.double().std(),
        "scores/length_correlation": torch.corrcoef(torch.stack([double, lengths.double()]))[0, 1],
    }
    assert tuple(expected) == MOMENT_METRICS
    assert found(moments) == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-8)


def test_by_hand():
    moments = ScoreMoments()
    moments.update(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([9, 6, 3]))
    # deviations -2, -1, 3 and 3, 0, -3: sums of squares 14 and 18, of products -15
    expected = {"num_responses": 3.0, "mean": 3.0, "std": math.sqrt(7.0), "length_correlation": -15 / math.sqrt(252)}
    assert found(moments) == pytest.approx({f"scores/{name}": value for name, value in expected.items()})


def test_what_is_not_defined_is_left_out():
    moments = ScoreMoments()
    moments.update(torch.zeros(0), torch.zeros(0))
    assert found(moments) == {"scores/num_responses": 0.0}
    moments.update(torch.tensor([0.1]), torch.tensor([7]), torch.tensor([1.0]), torch.tensor([0.0]))
    assert set(found(moments)) == {"scores/num_responses", "scores/mean"}


def test_equal_scores_do_not_correlate_with_anything():
    """0.1 has no exact square: what rounding leaves of no spread is none."""
    moments = ScoreMoments()
    moments.update(torch.full((1000,), 0.1), torch.arange(1000))
    assert found(moments)["scores/std"] == 0.0
    assert "scores/length_correlation" not in found(moments)


def test_scores_keep_their_graph_out():
    moments = ScoreMoments()
    moments.update(*(torch.ones(2, requires_grad=True) for _ in range(4)))
    assert not moments.compute()["scores/mean"].requires_grad


def test_saved_and_reset():
    scores, lengths = draw()
    whole, first = ScoreMoments(), ScoreMoments()
    whole.update(scores, lengths, scores, -scores)
    first.update(scores[:30], lengths[:30], scores[:30], -scores[:30])
    again = ScoreMoments()
    again.load_state_dict(first.state_dict())
    again.update(scores[30:], lengths[30:], scores[30:], -scores[30:])
    assert found(again) == pytest.approx(found(whole), rel=1e-12)
    again.reset()
    assert found(again) == {"scores/num_responses": 0.0}
