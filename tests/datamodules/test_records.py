"""What a row says: the beginnings that sequences share, and errors that can be counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.records import BadRowError, common_prefix_length


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [
        ("", "", 0),
        ("ab", "", 0),
        ("ab", "ab", 2),
        ("abc", "abx", 2),
        ("ab", "abc", 2),
        ([1, 2], [1, 3], 1),
        ("b", "a", 0),
    ],
)
def test_what_two_sequences_share(one, other, length):
    assert common_prefix_length(one, other) == common_prefix_length(other, one) == length


@given(st.text("ab"), st.text("ab"), st.text("ab"))
def test_what_they_share_by_a_slow_loop(shared, one, other):
    one, other = shared + one, shared + other
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    assert common_prefix_length(one, other) == common_prefix_length(list(one), list(other)) == length


def test_a_bad_row_has_a_reason_to_count_and_a_message_to_read():
    error = BadRowError("empty_response", "'chosen' has an empty response")
    assert (error.reason, str(error)) == ("empty_response", "'chosen' has an empty response")
    assert isinstance(error, ValueError)
