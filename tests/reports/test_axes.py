"""Scales and ticks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.reports.axes import Scale, is_drawable, scale, ticks, written

NUMBERS = st.floats().filter(is_drawable)


@given(values=st.lists(NUMBERS, min_size=1, max_size=5))
def test_any_finite_values_stand_inside(values):
    found = scale(values, 10.0, 110.0, room=0.05)
    assert all(10 - 1e-6 <= found(value) <= 110 + 1e-6 for value in values)


@given(low=NUMBERS, high=NUMBERS)
def test_ticks_are_few_even_and_inside(low, high):
    found = ticks(scale([low, high], 0.0, 1.0))
    assert 2 <= len(found) <= 7
    assert found == sorted(found)
    assert all(math.isfinite(tick) for tick in found)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.62, 0.78, [0.65, 0.7, 0.75]),
        (-1.2, 0.1, [-1, -0.5, 0]),
        (0, 12345, [0, 2500, 5000, 7500, 10000]),
        (1e-7, 5e-7, [1e-7, 2e-7, 3e-7, 4e-7, 5e-7]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(Scale(low, high, 0, 1)) == pytest.approx(expected)


def test_up_is_the_other_way_round():
    assert [Scale(0, 2, 100, 0)(value) for value in (0, 1, 2)] == [100, 50, 0]


def test_a_level_line_stands_in_the_middle():
    assert [scale([value], 0, 1)(value) for value in (0.0, 3.0, -1000.0)] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567.0, "1,234,567"), (12345678.0, "1.23e+07"), (0.00012, "0.00012"), (-1500, "-1,500"), (math.nan, "nan")],
)
def test_written(value, text):
    assert written(value) == text


def test_what_has_no_place_in_a_drawing():
    values = [0.0, -5e-324, 9e99, 1e100, -math.inf, math.nan]
    assert [is_drawable(value) for value in values] == [True, True, True, False, False, False]
