"""Calibration: by hand, equal to torchmetrics where it defines the same thing, and the split does not matter."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from lit_rlhf.metrics.calibration import CALIBRATION_METRICS, Calibration, ReliabilityBin


def logit(p):
    return torch.logit(torch.tensor(p, dtype=torch.float64))


def seen(*margins, **options):
    calibration = Calibration(**options)
    for part in margins:
        calibration.update(part)
    return calibration


def test_by_hand():
    """Right at 0.52, wrong at 0.54, a tie at 0.5; right at 0.93 and 0.97; wrong at 0.8."""
    calibration = seen(logit([0.52, 0.46, 0.5, 0.93, 0.97, 0.2]), num_bins=5)
    # bins of 0.1: confidences 1.56 / 3, accuracy 1.5 / 3; 0.8, 0; 1.9 / 2, 1
    expected = [(0.5, 0.6, 0.52, 0.5, 3), (0.8, 0.9, 0.8, 0.0, 1), (0.9, 1.0, 0.95, 1.0, 2)]
    for row, wanted in zip(calibration.bins(), expected, strict=True):
        assert row == pytest.approx(wanted)
        assert isinstance(row, ReliabilityBin)
    found = calibration.compute()
    assert tuple(found) == CALIBRATION_METRICS
    assert float(found["scores/ece"]) == pytest.approx((0.06 + 0.8 + 0.1) / 6)
    brier = (0.48**2 + 0.54**2 + 0.5**2 + 0.07**2 + 0.03**2 + 0.8**2) / 6
    assert float(found["scores/brier"]) == pytest.approx(brier)


@pytest.mark.parametrize("num_bins", [4, 10, 15])
def test_equal_to_torchmetrics(num_bins):
    """The chosen response as the second of two classes; its bins go from 0 to 1, where nothing lies below 0.5."""
    torch.manual_seed(0)
    margins = 2 * torch.randn(500, dtype=torch.float64) + 0.5
    p = margins.sigmoid()
    theirs = multiclass_calibration_error(
        torch.stack([1 - p, p], dim=1), torch.ones(500, dtype=torch.long), num_classes=2, n_bins=2 * num_bins
    )
    assert float(seen(margins, num_bins=num_bins).compute()["scores/ece"]) == pytest.approx(float(theirs), abs=1e-6)


def test_the_split_does_not_matter():
    torch.manual_seed(0)
    margins = torch.randn(100)
    whole, split = seen(margins), seen(margins[:1], margins[1:1], margins[1:70], margins[70:])
    for row, wanted in zip(split.bins(), whole.bins(), strict=True):
        assert row == pytest.approx(wanted, rel=1e-12)
    assert [float(x) for x in split.compute().values()] == pytest.approx([float(x) for x in whole.compute().values()])


def test_far_out_margins_fall_into_the_last_bin():
    calibration = seen(torch.tensor([1e4, 1e4, -1e4]))
    assert calibration.bins() == [ReliabilityBin(0.95, 1.0, 1.0, pytest.approx(2 / 3), 3)]
    assert float(calibration.compute()["scores/brier"]) == pytest.approx(1 / 3)


def test_nothing_without_pairs():
    calibration = seen(torch.zeros(0))
    assert (calibration.compute(), calibration.bins()) == ({}, [])


def test_saved_and_reset():
    again = Calibration()
    again.load_state_dict(seen(torch.tensor([2.0])).state_dict())
    again.update(torch.tensor([-2.0]))
    assert again.bins() == seen(torch.tensor([2.0, -2.0])).bins()
    again.reset()
    assert again.bins() == []
