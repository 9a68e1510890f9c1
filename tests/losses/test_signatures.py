"""Signatures: tensors and settings told apart, and what a caller cannot give refused by name."""

from __future__ import annotations

import pytest

from lit_rlhf.losses.signatures import Signature


def squared_loss(a, b, *, power=2.0, shift=0.0):
    return (a - b - shift) ** power


def test_tensors_are_positional_and_settings_keyword_only():
    read = Signature.read(squared_loss, {"power": 3.0}, ["b", "c", "a"], "reward")
    assert read == ("squared", ("a", "b"), {"power": 2.0, "shift": 0.0})


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (squared_loss, {}, "losses: squared asks for b; a reward loss may ask for a, c"),
        (lambda: 0, {}, "asks for no tensors; a reward loss may ask for a, c"),
        (lambda a, *, d: a, {"e": 1.0}, "has no option 'e'; its options are: d"),
        (lambda a: a, {"e": 1.0}, "has no option 'e'; its options are: none"),
    ],
)
def test_what_cannot_be_given_is_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        Signature.read(function, options, ["a", "c"], "reward")
