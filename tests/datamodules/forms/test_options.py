"""Columns that any row may carry."""

from __future__ import annotations

import pytest

from datamodules.forms.fields import Fields
from datamodules.forms.options import read_margin, read_template_kwargs, read_tools
from datamodules.records import BadRowError


def test_absent_options():
    fields = Fields({"margin": None})
    assert (read_margin(fields), read_tools(fields), read_template_kwargs(fields)) == (0.0, None, {})


def test_options_are_read_and_leave_the_columns():
    schema = {"name": "f", "parameters": None}
    fields = Fields({"margin": "1.5", "tools": [schema], "chat_template_kwargs": {"think": False, "other": None}})
    assert read_margin(fields) == 1.5
    assert read_tools(fields) == [{"name": "f"}]
    assert read_template_kwargs(fields) == {"think": False}
    assert fields.used == set(fields.values)


@pytest.mark.parametrize("tools", ["", "[]", []])
def test_no_tools(tools):
    assert read_tools(Fields({"tools": tools})) is None


def test_tools_as_json():
    assert read_tools(Fields({"tools": '[{"name": "f"}]'})) == [{"name": "f"}]


BAD = [
    (read_margin, {"margin": "x"}, "'margin' is str 'x'; it must be a finite number"),
    (read_margin, {"margin": True}, "'margin' is bool 'True'"),
    (read_margin, {"margin": float("nan")}, "'margin' is float 'nan'"),
    (read_tools, {"tools": "{"}, "'tools' is text but not JSON"),
    (read_tools, {"tools": "3"}, "'tools' is int '3'; it must be a list of functions, or that as JSON"),
    (read_tools, {"tools": {"a": 1}}, "'tools' is dict"),
    (read_template_kwargs, {"chat_template_kwargs": {"tokenize": True}}, "may not set tokenize"),
    (read_template_kwargs, {"chat_template_kwargs": "x"}, "'chat_template_kwargs' is str 'x'"),
]


@pytest.mark.parametrize(("read", "row", "message"), BAD)
def test_bad_option(read, row, message):
    with pytest.raises(BadRowError) as caught:
        read(Fields(row))
    assert caught.value.reason == "wrong_type"
    assert message in str(caught.value)
