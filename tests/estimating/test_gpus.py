"""Devices by name."""

from __future__ import annotations

import pytest

from lit_rlhf.estimating.gpus import DEVICES, device


def test_a_name_is_found_in_any_case():
    assert device("H200").gigabytes == 141


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"--gpu rtx4080: not known; did you mean 'rtx40[79]0'"):
        device("rtx4080")


def test_every_card_is_faster_at_computing_than_at_reading():
    assert all(each.teraflops > each.terabytes > 0 for each in DEVICES.values())
