"""Variance without rounding: what stays, what goes."""

import pytest
import torch

from lit_rlhf.losses.rounding import without_rounding


@pytest.mark.parametrize("value", [0.1, 1000.1, -3e7, 0.0])
def test_equal_numbers_have_no_variance(value):
    variance, mean = torch.var_mean(torch.full((7,), value) * (1 + torch.tensor([1e-7, 0, 0, 0, 0, 0, -1e-7])), 0)
    assert without_rounding(variance, mean) == 0


def test_a_variance_that_is_one_stays():
    variance, mean = torch.tensor([1e-9, 2.0, 1e-2]), torch.tensor([0.0, 5.0, 1e4])
    assert without_rounding(variance, mean).tolist() == variance.tolist()


def test_what_is_not_a_number_is_not_called_rounding():
    assert without_rounding(torch.tensor(torch.inf), torch.tensor(1.0)) == torch.inf
    assert without_rounding(torch.tensor(torch.nan), torch.tensor(torch.nan)).isnan()
