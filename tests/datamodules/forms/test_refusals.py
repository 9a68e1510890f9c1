"""A row of no known form is told which form it is nearest to."""

from __future__ import annotations

import pytest

from datamodules.forms.fields import Fields
from datamodules.forms.refusals import Shape, refusal

SHAPES = (
    Shape("pair", (("prompt",), ("chosen",), ("rejected",)), ""),
    Shape("list", (("prompt",), ("completions", "responses")), "scores"),
    Shape("dialogue", (("chosen",), ("rejected",)), "turns"),
    Shape("whole", (("chosen",), ("rejected",)), ""),
    Shape("text", (("text",),), ""),
)


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (
            {"prompt": 1, "chosen": 2},
            "missing_key",
            "row has no 'rejected' (keys found: 'prompt', 'chosen'), which the nearest form, 'pair', needs",
        ),
        (
            {"prompt": 1, "responss": 2},
            "missing_key",
            "row has no 'completions' or 'responses' (keys found: 'prompt', 'responss'), which the nearest form, 'list'"
            ", needs; did you mean 'responses' by 'responss'?",
        ),
        ({"chosn": 1}, "missing_key", "did you mean 'chosen' by 'chosn'?"),
        (
            {"rejected": 1, "id": 2},
            "missing_key",
            "row has no 'chosen' (keys found: 'rejected', 'id'), which the nearest form, 'whole', needs",
        ),
        ({"prompt": 1, "responses": 2}, "unknown_form", "'list' is the nearest form, but it needs scores (keys found"),
        ({"a": 1}, "unknown_form", "no form is known by these columns (keys found: 'a'); name them by `columns`"),
    ],
)
def test_refusal(row, reason, message):
    error = refusal(Fields(row), SHAPES)
    assert error.reason == reason
    assert message in str(error)
