"""Drawings: points stand where their values are, and nothing needs colours, scripts or a pointer to be read."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from lit_rlhf.reports.charts import (
    HEIGHT,
    WIDTH,
    colour,
    line_chart,
    point_chart,
    reliability_chart,
    share_chart,
    spread_chart,
)

LINES = {"train": [(0.0, 1.0), (5.0, 2.0), (10.0, 3.0)], "val": [(0.0, 3.0), (10.0, 1.0)]}
BINS = [
    {"low": 0.5, "high": 0.55, "confidence": 0.5, "accuracy": 0.5, "num_pairs": 40},
    {"low": 0.95, "high": 1.0, "confidence": 1.0, "accuracy": 1.0, "num_pairs": 20},
]


def tree(figure):
    return ElementTree.fromstring(str(figure))


def drawn(figure, kind):
    """Points of each path of a class."""
    paths = [path.get("d") for path in tree(figure).iter("path") if kind in path.get("class").split()]
    return [[tuple(map(float, pair.split(","))) for pair in d[1:].split("L")] for d in paths]


def test_lines_stand_where_their_values_are():
    train, val = drawn(line_chart("loss", LINES), "line")
    (left, low), (middle, half), (right, high) = train
    assert left < middle < right <= WIDTH
    assert middle - left == pytest.approx(right - middle, abs=0.02)
    assert 0 < high < half < low < HEIGHT, "up is less"
    assert half - high == pytest.approx(low - half, abs=0.02)
    assert val == [(left, high), (right, low)]


def test_a_line_chart_says_it_all_in_words():
    figure = tree(line_chart("loss <", LINES, "falls `fast`"))
    svg = figure.find("svg")
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "loss < by step: train from 1 to 3; val from 3 to 1"
    assert [key.text for key in figure.iter("span") if "key" in key.get("class").split()] == ["train", "val"]
    cells = [[cell.text for cell in row] for row in figure.iter("tr")]
    assert cells == [["step", "train", "val"], ["0", "1", "3"], ["5", "2", "-"], ["10", "3", "1"]]
    assert [code.text for code in figure.iter("code")] == ["fast"]


def test_values_under_the_pointer_can_be_read_back():
    figure = tree(line_chart("loss", {"val": [(2.0, 0.25), (7.0, 0.75)]}))
    low, high, start, end = map(float, figure.find("svg").get("data-up").split())
    ((_, first), (_, last)) = drawn(line_chart("loss", {"val": [(2.0, 0.25), (7.0, 0.75)]}), "line")[0]
    assert [low + (y - start) / (end - start) * (high - low) for y in (first, last)] == pytest.approx(
        [0.25, 0.75], abs=1e-3
    )


def test_a_long_line_stays_small_and_its_table_short():
    figure = line_chart("loss", {"train": [(float(step), math.sin(step)) for step in range(20_000)]})
    assert len(figure) < 10_000
    assert len(list(tree(figure).iter("tr"))) == 13


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_what_is_not_finite_is_not_drawn(value):
    assert line_chart("loss", {"train": [(0.0, value)]}) is None
    assert len(drawn(line_chart("loss", {"train": [(0.0, value), (1.0, 2.0), (2.0, 3.0)]}), "line")[0]) == 2
    assert spread_chart("score", {"after": [value]}) is None
    assert point_chart("score", {"val": [(0.0, value), (1.0, 1.0)]}, ("x", "y")) is None


@pytest.mark.parametrize("value", [0.0, 9e99, -9e99, 5e-324])
def test_extreme_values_are_drawn(value):
    for figure in (line_chart("x", {"train": [(0.0, value), (1.0, 1.0)]}), spread_chart("x", {"after": [value, 1.0]})):
        assert not re.search(r"nan|inf", str(figure).replace("information", ""))


def test_a_spread_is_a_share_of_its_own():
    figure = tree(spread_chart("score", {"before": [0.0, 0.0, 0.0, 10.0], "after": [10.0]}, within=[20.0], bins=4))
    before, after = (path.get("d") for path in figure.iter("path") if "bars" in path.get("class").split())
    tops = [[float(y) for y in re.findall(r"V([\d.]+)H", d)] for d in (before, after)]
    ground, full = tops[0][1], tops[1][2]
    assert tops[1] == [ground, ground, full, ground]
    assert (ground - tops[0][0]) / (ground - full) == pytest.approx(0.75, abs=0.01)
    assert (ground - tops[0][2]) / (ground - full) == pytest.approx(0.25, abs=0.01)
    assert "before, mean 2.5" in "".join(figure.itertext())


def test_a_path_begins_at_a_ring_and_grows():
    figure = tree(point_chart("score", {"val": [(0.0, 1.0), (5.0, 2.0)]}, ("KL", "score"), is_path=True))
    (ring,) = [dot for dot in figure.iter("circle") if dot.get("class") == "ring"]
    dots = [dot for dot in figure.iter("circle") if dot.get("class") is None]
    assert (ring.get("cx"), ring.get("cy")) == (dots[0].get("cx"), dots[0].get("cy"))
    assert float(dots[0].get("r")) < float(dots[1].get("r"))
    assert "KL" in [text.text for text in figure.iter("text")]


def test_a_calibrated_model_lies_on_the_dashed_line():
    (line,) = drawn(reliability_chart("reliability", BINS), "line")
    (ideal,) = drawn(reliability_chart("reliability", BINS), "ideal")
    assert line == ideal
    heights = [float(bar.get("height")) for bar in tree(reliability_chart("reliability", BINS)).iter("rect")]
    assert heights[0] == 2 * heights[1]
    assert reliability_chart("reliability", []) is None


def test_error_bars_are_two_standard_errors():
    figure = tree(reliability_chart("reliability", BINS))
    (ends,) = [re.findall(r"[\d.]+", path.get("d")) for path in figure.iter("path") if "error" in path.get("class")][:1]
    scale = (HEIGHT - 36 - 8) / (1 - 0.4)
    assert float(ends[1]) - float(ends[2]) == pytest.approx((0.5 + 2 * (0.25 / 40) ** 0.5 - 0.4) * scale, abs=0.2)


def test_shares_fill_the_bar():
    figure = tree(share_chart("time", {"rollout": 3.0, "update": 1.0}, "seconds"))
    widths = [float(piece.get("width")) + 1 for piece in figure.iter("rect")]
    assert widths == pytest.approx([WIDTH * 0.75, WIDTH * 0.25])
    assert "rollout 75%" in "".join(figure.itertext())
    assert share_chart("time", {"rollout": 0.0}, "seconds") is None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("val", 1),
        ("val chosen", 3),
        ("train rejected", 4),
        ("val hh", 2),
        ("train hh", 2),
        ("val own", 1),
        ("other", 2),
    ],
)
def test_what_is_what_keeps_its_colour(name, number):
    assert colour(name, ["val hh", "val own", "train hh"] if " " in name else [name]) == number
