"""Bodies that are no JSON, keys that nobody knows, and what is said of them."""

from __future__ import annotations

import pytest

from lit_rlhf.commands.serving.requests import RequestError, kind_of, read_json, refuse_key


def test_json_is_read():
    assert read_json('{"a": ["\u00e9", 1]}'.encode()) == {"a": ["\u00e9", 1]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON: .* line 1, column 2"),
        (b"\xff", "not UTF-8"),
        (b"[NaN]", "NaN is no number"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "not JSON"),
    ],
)
def test_what_is_not_json_is_refused(body, words):
    with pytest.raises(RequestError, match=words) as refused:
        read_json(body)
    assert refused.value.status == 400


def test_a_key_that_nobody_knows_gets_the_nearest_and_details_only_where_there_are_any():
    with pytest.raises(RequestError, match=r"^it has the unknown key 'promt'; did you mean 'prompt'\?$") as refused:
        refuse_key("it", "promt", ("prompt", "n"), item=None)
    assert refused.value.details == {}
    with pytest.raises(RequestError, match="'xyz'; keys are prompt, n") as refused:
        refuse_key("it", "xyz", ("prompt", "n"), item=2)
    assert refused.value.details == {"item": 2}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a", "a text"),
        ("", '""'),
        ([1], "a list of something else"),
        ([], "[]"),
        ({"a": 1}, "an object"),
        (None, "null"),
        (1.5, "1.5"),
    ],
)
def test_values_are_named_by_their_kind(value, said):
    assert kind_of(value) == said
