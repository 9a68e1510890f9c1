"""The pictures of records: read from where they lie, put in the place of their marks, never cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from datamodules.pictures import TEXT_ALONE, PictureOptions, PictureReader, picture_reader
from datamodules.records import BadRowError, Record
from tests.tiny_vision import draw

MARK, TOKEN = 5, 6


@pytest.fixture
def reader(tiny_llava):
    return picture_reader(PictureOptions(), AutoTokenizer.from_pretrained(tiny_llava))


def spelled(*ids):
    return SimpleNamespace(tokens=ids)


@pytest.fixture
def by_hand():
    """A reader of a model that opens pictures by one token and fills them with another."""
    return PictureReader(SimpleNamespace(mark="<mark>", mark_id=MARK, image_token_id=TOKEN))


def test_paths_are_relative_to_the_folder_of_the_record_unless_another_is_named(reader, tmp_path):
    draw(tmp_path / "a" / "x.png", (40, 30))
    draw(tmp_path / "b" / "x.png", (20, 10))
    record = Record("form", "<image>", images=("x.png",), folder=str(tmp_path / "a"))
    (seen,) = reader.read(record)
    assert (seen.size, seen.picture.num_tokens, len(seen.tokens)) == ((40, 30), 16, 16)
    elsewhere = PictureReader(reader.processor, image_dir=str(tmp_path / "b"))
    assert elsewhere.read(record)[0].size == (20, 10)
    assert elsewhere.references(record) == [str(tmp_path / "b" / "x.png")]
    assert elsewhere.references(record._replace(images=("../a/x.png", b"1"))) == [None, b"1"]


def test_what_is_wrong_with_a_picture_names_its_place_in_the_row(reader, tmp_path):
    draw(tmp_path / "x.png")
    (tmp_path / "y.png").touch()
    record = Record("form", "<image><image>", images=("x.png", "y.png"), folder=str(tmp_path))
    with pytest.raises(BadRowError, match=r"^images\[1\]: the picture 'y\.png' holds no bytes") as raised:
        reader.read(record)
    assert raised.value.reason == "broken_image"


def test_a_picture_that_the_processor_does_not_take(tiny_qwen2_vl, tmp_path):
    reader = picture_reader(PictureOptions(), AutoTokenizer.from_pretrained(tiny_qwen2_vl))
    draw(tmp_path / "x.png", (1000, 1))
    with pytest.raises(
        BadRowError, match=r"images\[0\]: the processor does not take a picture of 1000 x 1 pixels"
    ) as raised:
        reader.read(Record("form", "<image>", images=("x.png",), folder=str(tmp_path)))
    assert raised.value.reason == "unfit_image"


def test_models_of_text_refuse_pictures_and_whoever_ignores_them_opens_none():
    record = Record("form", "<image>", images=("http://a/b.png",))
    with pytest.raises(BadRowError, match=r"no processor of pictures.*data\.images=ignore"):
        TEXT_ALONE.read(record)
    assert TEXT_ALONE.read(record._replace(images=())) == ()
    assert PictureReader(images="ignore").read(record) == ()


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"data\.images is 'no'; it must be one of see, ignore"):
        PictureOptions(images="no")
    with pytest.raises(ValueError, match=r"data\.image_dir is '.*nowhere', which is no folder"):
        PictureOptions(image_dir=str(tmp_path / "nowhere"))


def test_the_processor_that_is_used(tiny_llava, tiny_llama, tiny_tokenizer, tmp_path):
    llava = AutoTokenizer.from_pretrained(tiny_llava)
    assert picture_reader(PictureOptions(), AutoTokenizer.from_pretrained(tiny_llama())).processor is None
    assert picture_reader(PictureOptions(), tiny_tokenizer).processor is None
    assert picture_reader(PictureOptions(images="ignore"), llava).processor.mark == "<image>"
    llava.name_or_path = ""
    assert picture_reader(PictureOptions(), llava).processor is None
    assert picture_reader(PictureOptions(processor=str(tiny_llava)), llava).processor.mark == "<image>"
    with pytest.raises(ValueError, match="'nowhere' holds no processor"):
        picture_reader(PictureOptions(processor="nowhere"), llava)
    (tmp_path / "processor_config.json").write_text("{}")
    llava.name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match="holds no processor"):
        picture_reader(PictureOptions(), llava)
    assert picture_reader(PictureOptions(images="ignore"), llava).processor is None


def test_marks_become_the_tokens_of_their_pictures(by_hand):
    pictures = [spelled(8, TOKEN, TOKEN), spelled(TOKEN)]
    ids, scored = by_hand.put_in(pictures, [1, MARK, 2, MARK], [True] * 4)
    assert ids == [1, 8, TOKEN, TOKEN, 2, TOKEN]
    assert scored == [True, False, False, False, True, False]
    assert by_hand.put_in([], [1, 2]) == ([1, 2], [False, False])
    assert TEXT_ALONE.put_in([], [1, MARK], [False, True]) == ([1, MARK], [False, True])


@pytest.mark.parametrize("ids", [[1], [MARK, MARK], [TOKEN], [MARK, TOKEN]])
def test_there_is_one_mark_for_each_picture_and_no_other_image_token(by_hand, ids):
    with pytest.raises(BadRowError, match="image tokens '<mark>' stand in the tokens for 1 pictures") as raised:
        by_hand.put_in([spelled(TOKEN)], ids)
    assert raised.value.reason == "image_marks"
    with pytest.raises(BadRowError):
        by_hand.require_none([1, TOKEN])


@pytest.mark.parametrize(
    ("after", "is_whole"),
    [
        ([1, 8, TOKEN, TOKEN, 2, 3], True),
        ([8, TOKEN, TOKEN, 2, 3], True),
        ([8, TOKEN, TOKEN], True),
        ([TOKEN, TOKEN, 2, 3], False),
        ([1, TOKEN, TOKEN, 2, 3], False),
        ([TOKEN, 2, 3], False),
        ([2, 3], False),
        ([1, 8, TOKEN], False),
    ],
)
def test_a_cut_leaves_pictures_whole_and_what_opens_them(by_hand, after, is_whole):
    assert by_hand.is_whole([1, 8, TOKEN, TOKEN, 2, 3], after) is is_whole
    assert TEXT_ALONE.is_whole([1, TOKEN], [1])
