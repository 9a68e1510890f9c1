"""The cut keeps the limit, and never leaves a prompt or a response empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.encoding.truncation import Cut, TooLongError, cut_to_length, keep_end

SIZE = st.integers(1, 40)


@given(SIZE, SIZE, st.integers(2, 50), st.sampled_from(["prompt_left", "response_right", "drop"]))
def test_what_is_left_fits_and_is_not_empty(prompt, response, max_length, truncation):
    try:
        cut = cut_to_length(prompt, response, max_length, truncation)
    except TooLongError:
        assert prompt + response > max_length
        assert truncation == "drop" or (truncation == "response_right" and prompt >= max_length)
        return
    assert 1 <= cut.prompt <= prompt
    assert min(cut.response, response) >= 1
    assert cut.prompt + min(cut.response, response) <= max_length
    assert ("prompt" in cut.truncated) == (cut.prompt < prompt)
    assert ("response" in cut.truncated) == (cut.response < response)


def test_by_hand():
    assert cut_to_length(8, 4, 12, "drop") == Cut(8, 4)
    assert cut_to_length(8, 4, 10, "prompt_left") == Cut(6, 4, ("prompt",))
    assert cut_to_length(8, 4, 6, "prompt_left") == Cut(3, 3, ("prompt", "response"))
    assert cut_to_length(8, 4, 9, "response_right") == Cut(8, 1, ("response",))


@pytest.mark.parametrize(
    ("truncation", "max_length", "reason", "message"),
    [
        ("drop", 8, "too_long", "has 8 prompt and 4 response tokens, above max_length=8"),
        ("response_right", 8, "prompt_too_long", "has 8 prompt tokens, which leaves no room for a response"),
    ],
)
def test_what_is_dropped(truncation, max_length, reason, message):
    with pytest.raises(TooLongError, match=message) as caught:
        cut_to_length(8, 4, max_length, truncation)
    assert caught.value.reason == reason


def test_the_opening_token_survives():
    assert keep_end([1, 2, 3, 4], 3, bos=1) == [1, 3, 4]
    assert keep_end([1, 2, 3, 4], 3, bos=None) == [2, 3, 4]
    assert keep_end([1, 2, 3, 4], 1, bos=1) == [4]
    assert keep_end([1, 2], 5, bos=1) == [1, 2]
