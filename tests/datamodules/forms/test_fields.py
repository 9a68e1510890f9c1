"""The columns of a row under their usual names."""

from __future__ import annotations

import pytest

from datamodules.forms.fields import Fields, nearest, read_words, shown_keys
from datamodules.records import BadRowError, Layout


def test_null_is_absent():
    fields = Fields({"a": None, "b": 0, "c": ""})
    assert (fields.values, "a" in fields, fields.get("a"), fields["b"]) == ({"b": 0, "c": ""}, False, None, 0)
    assert (fields.first("a", "c", "b"), fields.first("a")) == ("c", None)


def test_it_remembers_what_was_asked():
    fields = Fields({"a": 1, "b": 2})
    fields.first("b")
    assert (fields.ask("x", "a"), fields.ask("x"), fields.used) == ("a", None, {"a"})


def test_numbers_and_texts_name_their_column():
    fields = Fields({"a": "x", "n": "2"})
    assert (fields.text("a"), fields.number("m", "n"), fields.number("m")) == ("x", 2.0, None)
    with pytest.raises(BadRowError, match="'a' is str 'x'; it must be a finite number"):
        fields.number("a")


def test_words_are_text_one_turn_or_several():
    turn = {"role": "user", "content": "x"}
    assert read_words("a", "x", {}) == "x"
    assert read_words("a", turn, {}) == read_words("a", [turn], {}) == [turn]
    for value in (3, [], {}, None):
        with pytest.raises(BadRowError, match=r"'a' is .*; it must be text or a list of messages"):
            read_words("a", value, {})
    with pytest.raises(BadRowError, match=r"a\[0\] is str 'x'; it must be a message"):
        read_words("a", ["x"], {})


def test_a_layout_renames_all_at_once():
    row = {"x": 1, "y": 2, "z": 3}
    assert Fields(row, Layout({"x": "y", "y": "x"})).values == {"x": 2, "y": 1, "z": 3}
    assert Fields(row, Layout({"z": "x"})).values == {"y": 2, "z": 1}


def test_a_column_that_the_layout_names_must_be_there():
    with pytest.raises(BadRowError) as caught:
        Fields({"questin": "x"}, Layout({"prompt": "question"}))
    assert caught.value.reason == "missing_key"
    expected = "row has no 'question', which columns.prompt names (keys found: 'questin'); did you mean 'questin'?"
    assert str(caught.value) == expected
    assert "prompt" not in Fields({"question": None}, Layout({"prompt": "question"}))


def test_an_unknown_tag_is_the_users_mistake():
    with pytest.raises(ValueError, match="tags has 'rol_tag'; known tags are role_tag, content_tag") as caught:
        Fields({}, Layout(tags={"rol_tag": "x"}))
    assert not isinstance(caught.value, BadRowError)


def test_many_and_long_keys_are_shown_in_part():
    shown = shown_keys({f"{number}{'x' * 100}": None for number in range(100)})
    assert shown.endswith("(null), and 70 more")
    assert len(shown) < 2000
    assert nearest("rejcted", ["chosen", "rejected"]) == "rejected"
    assert nearest("prompt", ["chosen"]) is None
