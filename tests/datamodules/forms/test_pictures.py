"""Marks and pictures belong together."""

from __future__ import annotations

import pytest

from datamodules.forms.table import read_row
from datamodules.records import BadRowError


def read(*contents, **columns):
    """The prompt's texts and the pictures of a conversation in which each content is a user's, then an answer."""
    turns = [{"role": "user", "content": content} for content in contents]
    (record,) = read_row({"messages": [*turns, {"role": "assistant", "content": "<image>!"}], **columns})
    assert all("pictures" not in turn for turn in record.prompt)
    return [turn["content"] for turn in record.prompt], record.images


IMAGE = {"type": "image"}
A, B = {"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": {"url": "b.png"}}


def test_marks_in_text_take_the_column_in_order():
    assert read("<image>Who?", "And <image>", images=["a", "b"]) == (["<image>Who?", "And <image>"], ("a", "b"))
    assert read("<image>Who?", image={"bytes": b"x"}) == (["<image>Who?"], ({"bytes": b"x"},))


def test_marks_are_put_before_the_first_user_turn_where_there_are_none():
    assert read("Who?", "Why?", images=["a", "b"]) == (["<image><image>Who?", "Why?"], ("a", "b"))
    (record,) = read_row({"prompt": "Who?", "system": "s", "chosen": "x", "rejected": "y", "image": "a"})
    assert [turn["content"] for turn in record.prompt] == ["s", "<image>Who?"]
    (record,) = read_row({"prompt": "Who?", "image": "a"})
    assert (record.prompt, record.images) == ("<image>Who?", ("a",))


def test_blocks_keep_their_place_and_bring_their_pictures():
    assert read([A, "Who?"], ["Why?", B]) == (["<image>Who?", "Why?<image>"], ("a.png", "b.png"))
    assert read([A, "Who?"], images=["same"]) == (["<image>Who?"], ("a.png",))


def test_blocks_without_a_reference_take_the_column():
    assert read([IMAGE, A, IMAGE], images=["x", "y"]) == (["<image><image><image>"], ("x", "a.png", "y"))


def test_the_prompt_that_two_conversations_share_shows_its_pictures_once():
    def turns(answer):
        return [{"role": "user", "content": [A, "Who?"]}, {"role": "assistant", "content": answer}]

    (record,) = read_row({"chosen": turns("x"), "rejected": turns("y")})
    assert (record.prompt[0], record.images) == ({"role": "user", "content": "<image>Who?"}, ("a.png",))


def test_without_pictures_a_mark_is_text():
    assert read("What does <image> mean?", images=[]) == (["What does <image> mean?"], ())


BAD = [
    (("<image>Who?",), {"images": ["a", "b"]}, "image_marks", "1 marks <image> for 2 pictures"),
    (([IMAGE, "Who?"],), {}, "image_marks", "the turns hold 1 pictures but 'images' 0"),
    (([IMAGE, "Who?"],), {"images": ["a", "b"]}, "image_marks", "the turns hold 1 pictures but 'images' 2"),
    (([A, "Who?"],), {"images": ["a", "b"]}, "image_marks", "the turns hold 1 pictures but 'images' 2"),
    (([A, "<image>?"],), {}, "image_marks", "2 marks <image> for 1 pictures"),
    (("Who?",), {"images": ["a", None]}, "wrong_type", "images[1] is null"),
    (("Who?",), {"image": ""}, "wrong_type", "image[0] is an empty str"),
    (("Who?",), {"videos": ["v"]}, "unsupported_media", "'videos' is given"),
]


@pytest.mark.parametrize(("contents", "columns", "reason", "message"), BAD)
def test_bad_pictures(contents, columns, reason, message):
    with pytest.raises(BadRowError) as caught:
        read(*contents, **columns)
    assert caught.value.reason == reason
    assert message in str(caught.value)


def test_a_picture_in_an_answer_is_refused():
    with pytest.raises(BadRowError, match="a response shows a picture"):
        read_row({"messages": [{"role": "user", "content": "Draw"}, {"role": "assistant", "content": [A, "Here"]}]})
