"""Products by either library, and rows in portions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rlhf.models.layers.products import PORTION, add_product, in_portions, packed, portions_of, product


class ByOneDNN(TorchDispatchMode):
    """Notes how many rows oneDNN is given, product by product."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_linear_pointwise" in str(function):
            self.rows.append(len(args[0]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 16, 19, 64, 512])
@pytest.mark.parametrize(("inner", "outer"), [(32, 48), (48, 10), (12, 10)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_what_it_is(rows, inner, outer, has_bias):
    x, weight, bias = torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(outer) if has_bias else None
    expected = (x.double() @ weight.double().T + (0 if bias is None else bias)).float()
    for form in (weight, weight.T.contiguous().T):
        torch.testing.assert_close(product(x, form, bias), expected, rtol=1e-5, atol=1e-5)
    total = torch.ones(rows, outer)
    add_product(total, x, weight)
    torch.testing.assert_close(total, (1 + x.double() @ weight.double().T).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize(
    ("rows", "inner", "dtype", "is_met"),
    [
        (64, 32, torch.float32, True),
        (128, 32, torch.float32, True),
        (112, 32, torch.float32, False),
        (48, 32, torch.float32, True),
        (17, 32, torch.float32, False),
        (64, 30, torch.float32, False),
        (64, 32, torch.bfloat16, False),
    ],
)
def test_onednn_is_given_few_different_sizes(rows, inner, dtype, is_met):
    with ByOneDNN() as seen:
        product(torch.ones(rows, inner, dtype=dtype), torch.ones(8, inner, dtype=dtype))
        add_product(
            torch.ones(rows, 8, dtype=dtype), torch.ones(rows, inner, dtype=dtype), torch.ones(8, inner).to(dtype)
        )
    assert seen.rows == [rows] * 2 * is_met


@pytest.mark.parametrize(("num_tokens", "num_rows"), [(1, 4), (2, 4), (3, 4), (4, 4), (5, 8)])
def test_packed_weights_meet_multiples_of_four_rows(num_tokens, num_rows):
    weight, x = torch.randn(10, 12), torch.randn(num_tokens, 12)
    with ByOneDNN() as seen:
        found = product(x, packed(weight))
    assert seen.rows == [num_rows]
    torch.testing.assert_close(found, x @ weight.T, rtol=1e-5, atol=1e-5)


@given(num_rows=st.integers(1, 5000))
def test_portions_follow_on_one_another(num_rows):
    parts = portions_of(num_rows, torch.device("cpu"))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(num_rows))
    sizes = [part.stop - part.start for part in parts]
    assert all(size == PORTION for size in sizes[:-1])
    assert sizes[-1] <= PORTION


def test_a_gpu_computes_all_rows_at_once():
    assert portions_of(5000, torch.device("cuda")) == [slice(0, 5000)]


def test_results_are_put_together_from_portions():
    x, asked = torch.randn(10, 3), []

    def compute(part):
        asked.append(part)
        return [x[part] * 2, x[part].sum(1)]

    doubled, sums = in_portions([slice(0, 4), slice(4, 8), slice(8, 10)], compute)
    assert len(asked) == 3
    assert torch.equal(doubled, x * 2)
    assert torch.equal(sums, x.sum(1))


def test_one_portion_is_not_copied():
    only = torch.ones(4, 2)
    assert in_portions([slice(0, 4)], lambda part: [only])[0] is only
