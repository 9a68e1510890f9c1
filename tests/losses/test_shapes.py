"""The shape check: what passes, what is refused, and that the message names every tensor."""

import pytest
import torch

from lit_rlhf.losses.shapes import (
    check_cells,
    check_pairs,
    check_responses,
    check_sequences,
    check_steps,
    check_tokens,
)


def test_vectors_of_one_length_pass():
    check_pairs(a=torch.zeros(3), b=torch.ones(3))
    check_pairs(a=torch.zeros(0))


@pytest.mark.parametrize(("a", "b"), [((3,), (2,)), ((3,), (3, 1)), ((), ()), ((2, 2), (2, 2)), ((1,), (3,))], ids=str)
def test_anything_else_is_refused_by_name_and_shape(a, b):
    with pytest.raises(ValueError, match="one number per pair") as refusal:
        check_pairs(left=torch.zeros(a), right=torch.zeros(b))
    assert f"left {a}" in str(refusal.value)
    assert f"right {b}" in str(refusal.value)


@pytest.mark.parametrize(
    ("check", "unit"),
    [
        (check_responses, r"response \(R,\)"),
        (check_steps, r"step \(N,\)"),
        (check_tokens, r"token \(N,\)"),
        (check_sequences, r"sequence \(L,\)"),
    ],
)
def test_other_units_are_named(check, unit):
    check(a=torch.zeros(3), b=torch.ones(3))
    with pytest.raises(ValueError, match=rf"one number per {unit}, got a \(3,\), b \(3, 1\)"):
        check(a=torch.zeros(3), b=torch.zeros(3, 1))


def test_cells_have_two_dimensions():
    check_cells(a=torch.zeros(2, 3), b=torch.ones(2, 3))
    for a, b in (((2, 3), (2, 2)), ((2, 3), (3,)), ((3,), (3,)), ((2, 3), (1, 3))):
        with pytest.raises(ValueError, match=r"one number per cell \(L, R\), got a \(") as refusal:
            check_cells(a=torch.zeros(a), b=torch.zeros(b))
        assert f"b {b}" in str(refusal.value)
