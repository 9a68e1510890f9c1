"""Columns of images of the ``datasets`` library are left as files, wherever in a row they are."""

from __future__ import annotations

import datasets
import pytest
from PIL import Image

from datamodules.readers.image_columns import has_image_columns
from datamodules.readers.memory import Indexed, Streamed
from datamodules.records import BadRowError
from tests.tiny_vision import draw

RED, BLUE = (Image.new("RGB", (4, 3), colour) for colour in ("red", "blue"))
ROWS = [
    {"prompt": "a", "images": [RED, BLUE], "talk": [{"image": BLUE, "text": "x"}], "best": {"image": RED}},
    {"prompt": "b", "images": [], "talk": [], "best": {"image": None}},
]


def stored(rows):
    return [item.decode() for block in Indexed(rows, "rows").blocks(0) for _, item in block.rows]


def streamed(rows):
    reader = Streamed(rows.to_iterable_dataset, "rows", False, lambda: None)
    return [item.decode() for block in reader.blocks(0) for _, item in block.rows]


@pytest.mark.parametrize("read", [stored, streamed])
def test_images_are_left_as_files_wherever_they_are(read):
    first, second = read(datasets.Dataset.from_list(ROWS))
    found = [*first["images"], first["talk"][0]["image"], first["best"]["image"]]
    assert [image["bytes"][:4] for image in found] == [b"\x89PNG"] * 4
    assert (first["prompt"], first["talk"][0]["text"]) == ("a", "x")
    assert (second["images"], second["talk"], second["best"]["image"]) == ([], [], None)


@pytest.mark.parametrize("read", [stored, streamed])
def test_of_paths_the_library_reads_the_file_when_the_row_is_decoded(read, tmp_path):
    draw(tmp_path / "a.png", (4, 3))
    (tmp_path / "b.png").write_bytes(b"no picture")
    features = datasets.Features({"image": datasets.Image()})
    good, bad = ({"image": [str(tmp_path / name)]} for name in ("a.png", "b.png"))
    (row,) = read(datasets.Dataset.from_dict(good, features=features))
    assert row["image"].size == (4, 3)
    assert Indexed(datasets.Dataset.from_dict(bad, features=features), "rows").fingerprint
    with pytest.raises(BadRowError, match=r"the picture '.*b\.png' cannot be read: UnidentifiedImageError"):
        read(datasets.Dataset.from_dict(bad, features=features))


def test_what_has_no_images_is_left_alone():
    rows = datasets.Dataset.from_list([{"prompt": "a", "numbers": [1]}])
    assert not has_image_columns(rows)
    assert not has_image_columns([{"image": RED}])
    assert Indexed(rows, "rows").rows is rows


def test_the_place_of_a_picture_in_memory_is_no_change_of_the_data():
    def told(*images):
        return Indexed([{"image": image, "more": [image]} for image in images], "rows").fingerprint

    assert told(RED, BLUE) == told(RED.copy(), BLUE.copy())
    assert told(RED, BLUE) != told(RED, RED)
    sets = [datasets.Dataset.from_list(ROWS) for _ in range(2)]
    assert Indexed(sets[0], "rows").fingerprint == Indexed(sets[1], "rows").fingerprint
