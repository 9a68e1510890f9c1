"""Pieces of text: together they are the text, none is taken back, and a stop string is never begun."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lit_rlhf.commands.speaking.pieces import TextPieces

TEXTS = (
    "A spider has eight legs.",
    " leading space",
    "d\u00e9j\u00e0 vu \U0001f577 and \u6f22\u5b57",
    "tabs\tand\n\nlines ",
    "a",
)


def pieces_of(tokenizer, text, stop_strings=()):
    pieces = TextPieces(tokenizer, stop_strings)
    said = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        said.append(pieces.add(token))
        if pieces.is_stopped:
            return said, True
    return [*said, pieces.rest()], pieces.is_stopped


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_and_hold_no_broken_character(text, tiny_tokenizer):
    said, is_stopped = pieces_of(tiny_tokenizer, text)
    assert "".join(said) == text
    assert not is_stopped
    assert not any("\ufffd" in piece for piece in said)
    assert said[0]  # it does not wait for the end


def test_spaces_stay_where_a_tokenizer_drops_the_one_before_a_text():
    words = ["<unk>", "\u2581", "\u2581a", "\u2581spider", "s"]
    model = models.WordLevel(dict(zip(words, range(5), strict=True)), unk_token="<unk>")
    backend = Tokenizer(model)
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    pieces = TextPieces(tokenizer)
    assert [pieces.add(token) for token in (2, 3, 4, 2)] == ["a", " spider", "s", " a"]


def test_a_character_that_never_ends_comes_at_the_end(tiny_tokenizer):
    tokens = tiny_tokenizer("ok \u6f22", add_special_tokens=False)["input_ids"][:-1]
    pieces = TextPieces(tiny_tokenizer)
    said = [pieces.add(token) for token in tokens]
    assert "".join(said) == "ok "
    assert set(pieces.rest()) == {"\ufffd"}
    assert pieces.rest() == ""


def test_special_tokens_are_not_said(tiny_tokenizer):
    pieces = TextPieces(tiny_tokenizer)
    assert "".join(pieces.add(token) for token in (5, tiny_tokenizer.eos_token_id)) == ""


@pytest.mark.parametrize(
    ("stop_strings", "expected", "is_stopped"),
    [
        (["eight"], "A spider has ", True),
        (["ight l", "legs"], "A spider has e", True),
        (["legs", "ight"], "A spider has e", True),
        (["legs.."], "A spider has eight legs.", False),
        (["s. And"], "A spider has eight legs.", False),
        (["."], "A spider has eight legs", True),
    ],
)
def test_a_stop_string_ends_it(stop_strings, expected, is_stopped, tiny_tokenizer):
    said, found = pieces_of(tiny_tokenizer, TEXTS[0], stop_strings)
    assert ("".join(said), found) == (expected, is_stopped)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("ab \u00e9\n"), max_size=20),
    stop_strings=st.lists(st.text(st.sampled_from("ab "), min_size=1, max_size=3), max_size=2),
)
def test_the_text_up_to_the_first_stop_string_whatever_the_tokens(text, stop_strings, tiny_tokenizer):
    said, is_stopped = pieces_of(tiny_tokenizer, text, stop_strings)
    places = [text.find(stop) for stop in stop_strings if stop in text]
    assert is_stopped == bool(places)
    whole = "".join(said)
    assert text.startswith(whole)
    assert not any(stop in whole for stop in stop_strings)
    if not places:
        assert whole == text
