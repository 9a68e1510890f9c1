"""Scales and their ticks: where a value stands in a drawing, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def is_drawable(value: float) -> bool:
    """Whether a value has a place in a drawing: neither NaN nor infinite, nor so large that differences would be."""
    return abs(value) < 1e100


class Scale(NamedTuple):
    """Values from ``low`` to ``high`` lie between ``start`` and ``end`` of the drawing.

    Args:
        low: least value.
        high: greatest value, above ``low``.
        start: where the least one stands.
        end: where the greatest one stands.

    Example:
        >>> Scale(0, 10, 100, 0)(2.5)
        75.0
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def scale(values: Iterable[float], start: float, end: float, room: float = 0.0) -> Scale:
    """The scale that holds some values.

    Args:
        values: drawable ones, at least one.
        start: where the least one stands.
        end: where the greatest one stands.
        room: left free at both ends, as a share of the whole.

    Example:
        >>> scale([3.0, 3.0], 0, 1)
        Scale(low=2.5, high=3.5, start=0, end=1)
    """
    known = list(values)
    low, high = min(known), max(known)
    beside = (high - low) * room
    if high - low < max(1e-9 * max(abs(low), abs(high)), 1e-100):
        beside = max(abs(low) * 0.05, 0.5)
    return Scale(low - beside, high + beside, start, end)


def ticks(of: Scale, most: int = 5) -> list[float]:
    """Round values inside a scale, evenly apart.

    Example:
        >>> ticks(Scale(0.1, 0.9, 0, 1))
        [0.2, 0.4, 0.6, 0.8]
    """
    width = (of.high - of.low) / most
    size = 10.0 ** math.floor(math.log10(width))
    step = next(size * number for number in _STEPS if size * number >= width * 0.999)
    first, last = math.ceil(of.low / step - 1e-9), math.floor(of.high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def written(value: float | None) -> str:
    """A number as a person writes it: three digits that count, thousands apart.

    Example:
        >>> [written(value) for value in (0.69314, 6700.8, 1e-5, 0.0, None, 250.0)]
        ['0.693', '6,701', '1e-05', '0', '-', '250']
    """
    if value is None:
        return "-"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.3g}"
