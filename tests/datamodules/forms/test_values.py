"""Values are checked, and what is wrong is said briefly, however large it is."""

from __future__ import annotations

import math

import pytest

from datamodules.forms import values
from datamodules.records import BadRowError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "null"),
        ("", "an empty str"),
        ([], "an empty list"),
        ({}, "an empty dict"),
        (3, "int '3'"),
        ("x" * 50, f"str {'x' * 40!r}"),
        ([1, 2], "list '[1, 2]'"),
        pytest.param(10**5000, "int of more than 40 digits", id="huge"),
    ],
)
def test_describe(value, said):
    assert values.describe(value) == said


def test_text_that_no_tokenizer_can_encode_is_refused():
    assert values.read_text("'x'", "h\u00e9 \U0001f600\x00") == "h\u00e9 \U0001f600\x00"
    with pytest.raises(BadRowError, match=r"'x' has a lone surrogate at character 2") as caught:
        values.read_text("'x'", "ab\ud800")
    assert caught.value.reason == "bad_encoding"
    with pytest.raises(BadRowError, match="'x' is null; it must be text"):
        values.read_text("'x'", None)


@pytest.mark.parametrize(("value", "number"), [(1, 1.0), (-2.5, -2.5), ("3e1", 30.0), (" 4 ", 4.0)])
def test_number(value, number):
    assert values.read_number("'n'", value) == number


@pytest.mark.parametrize("value", [True, "x", "", [], None, math.nan, math.inf, "nan", 10**400, "1" * 500])
def test_not_a_number(value):
    with pytest.raises(BadRowError, match=r"'n' is .*; it must be a finite number"):
        values.read_number("'n'", value)


@pytest.mark.parametrize(
    ("value", "verdict"), [(True, True), (0, False), (1.0, True), ("True", True), (" false", False)]
)
def test_verdict(value, verdict):
    assert values.read_verdict("'v'", value) is verdict


@pytest.mark.parametrize("value", [2, -1, "yes", "", None, [], [1], {}, "true" + " " * 99])
def test_not_a_verdict(value):
    assert not values.is_verdict(value)
    with pytest.raises(BadRowError, match="it must be true or false"):
        values.read_verdict("'v'", value)


def test_lists():
    assert values.read_list("'l'", [1], "a list") == [1]
    for value in ([], (), "ab", None, {"a": 1}):
        with pytest.raises(BadRowError, match="it must be a list"):
            values.read_list("'l'", value, "a list")


def test_json_text():
    assert values.read_json("'j'", '[1, {"a": 2}]', "a list") == [1, {"a": 2}]
    assert values.read_json("'j'", [3], "a list") == [3]
    for broken in ("{", "9" * 5000):
        with pytest.raises(BadRowError, match=r"'j' is text but not JSON \(.*\); it must be a list"):
            values.read_json("'j'", broken, "a list")


def test_nulls_inside_mappings_are_left_out_and_texts_checked():
    assert values.without_nulls("'v'", {"a": None, "b": [{"c": None, "d": 0}, None]}) == {"b": [{"d": 0}, None]}
    with pytest.raises(BadRowError, match="lone surrogate"):
        values.without_nulls("'v'", {"a": [{"b": "\udc00"}]})
    with pytest.raises(BadRowError, match="lone surrogate"):
        values.without_nulls("'v'", {"\udc00": 1})
