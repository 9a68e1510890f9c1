"""Causal attention block by block against one dense softmax."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.layers import causal_blocks
from lit_rlhf.models.layers.causal_blocks import attend_causally, attend_causally_backward, is_short, num_weights

J, G, D = 2, 3, 4


def dense(query, key, value, scaling):
    scores = query @ key[:, None].transpose(-1, -2) * scaling
    later = torch.ones(scores.shape[-2:]).triu(1 + scores.shape[-1] - scores.shape[-2]).bool()
    return torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1) @ value[:, None]


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 9), (5, 5), (7, 11), (160, 200)])
def test_outputs_and_gradients_are_those_of_one_softmax(num_queries, num_keys):
    torch.manual_seed(0)
    shapes = (J, G, num_queries, D), (J, num_keys, D), (J, num_keys, D)
    inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    expected, gradient = dense(*inputs, 0.3), torch.randn(shapes[0], dtype=torch.float64)
    wanted = torch.autograd.grad(expected, inputs, gradient)
    plain, output = tuple(x.detach() for x in inputs), torch.empty_like(expected)
    weights = attend_causally(*plain, 0.3, output)
    torch.testing.assert_close(output, expected)
    totals = torch.empty_like(plain[0]), torch.ones_like(plain[1]), torch.ones_like(plain[2])
    attend_causally_backward(gradient, plain, 0.3, output, weights, totals)
    for found, theirs, before in zip(totals, wanted, (0.0, 1.0, 1.0), strict=True):
        torch.testing.assert_close(found, theirs + before)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (40, 40), (160, 200), (512, 512)])
def test_what_is_kept_is_what_is_counted(num_queries, num_keys):
    key = torch.randn(J, num_keys, D)
    output = torch.empty(J, G, num_queries, D)
    weights = attend_causally(torch.randn_like(output), key, key, 1.0, output)
    assert sum(block.numel() for block in weights) == J * G * num_weights(num_queries, num_keys)


def test_little_is_computed_of_what_no_query_sees():
    assert num_weights(512, 512) < 0.6 * 512 * 512


@pytest.mark.parametrize(
    ("num_keys", "dtype", "expected"),
    [
        (causal_blocks.MOST_KEYS, torch.float32, True),
        (causal_blocks.MOST_KEYS + 1, torch.float32, False),
        (10, torch.bfloat16, False),
    ],
)
def test_which_runs_are_short(num_keys, dtype, expected):
    assert is_short(num_keys, dtype) == expected
