"""Files of pictures: every kind of pixels becomes upright RGB, and every kind of damage has a name."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from datamodules import open_image
from datamodules.pictures.opening import load_image
from datamodules.records import BadRowError


def file_of(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def pixels(content):
    return np.array(load_image(content).image)


def claiming(width, height):
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


RED = Image.new("RGB", (4, 3), "red")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "PPM", "TIFF"])
def test_lossless_files(kind):
    assert pixels(file_of(RED, kind)).tolist() == [[[255, 0, 0]] * 4] * 3


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files(kind):
    assert np.abs(pixels(file_of(RED, kind)).astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), [255, 0, 0]),
        (Image.new("L", (2, 2), 100), [100, 100, 100]),
        (Image.new("1", (2, 2), 1), [255, 255, 255]),
        (Image.new("LA", (2, 2), (0, 0)), [255, 255, 255]),
        (Image.new("RGBA", (2, 2), (0, 0, 255, 255)), [0, 0, 255]),
        (Image.new("RGBA", (2, 2), (0, 0, 255, 0)), [255, 255, 255]),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), [204, 204, 204]),
        (RED.convert("P"), [255, 0, 0]),
        (Image.fromarray(np.full((2, 2), 32768, np.uint16)), [128, 128, 128]),
    ],
    ids=["CMYK", "grey", "black and white", "grey and clear", "opaque", "clear", "a fifth black", "palette", "16 bits"],
)
def test_every_mode_becomes_rgb(image, expected):
    assert pixels(file_of(image, "TIFF"))[0, 0].tolist() == expected
    assert np.array(load_image(image).image)[0, 0].tolist() == expected


def test_a_palette_with_a_clear_colour_shows_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert pixels(file_of(image, "PNG", transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_a_turned_photo_is_turned_upright():
    image = Image.new("RGB", (2, 1), "red")
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    assert pixels(file_of(image, "PNG", exif=exif)).tolist() == [[[255, 0, 0]], [[0, 0, 255]]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = file_of(RED, kind, save_all=True, append_images=[Image.new("RGB", RED.size, "blue")], **options)
    opened = load_image(moving)
    assert opened.is_moving
    assert np.array(opened.image)[0, 0].tolist() == [255, 0, 0]
    assert not load_image(file_of(RED, kind)).is_moving


def test_a_photo_with_previews_does_not_move():
    photo = file_of(RED, "MPO", save_all=True, append_images=[RED])
    assert Image.open(io.BytesIO(photo)).n_frames == 2
    assert not load_image(photo).is_moving


def test_a_single_pixel():
    assert load_image(file_of(Image.new("RGB", (1, 1)))).image.size == (1, 1)


def test_a_picture_is_opened_by_its_path_as_training_does(tmp_path):
    (tmp_path / "a.png").write_bytes(file_of(Image.new("RGBA", (2, 2), (0, 0, 0, 0))))
    for given in (str(tmp_path / "a.png"), tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert open_image(given).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(BadRowError, match=r"the picture 'b\.png' cannot be read: FileNotFoundError"):
        open_image("b.png")


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"", "broken_image", "a picture holds no bytes; mend or replace it"),
        (b"no picture", "broken_image", "cannot be read: UnidentifiedImageError"),
        (file_of(RED.resize((400, 300)), "PNG")[:-40], "broken_image", "cannot be read"),
        (file_of(RED.resize((400, 300)), "JPEG")[:-500], "broken_image", "cannot be read: OSError: .*truncated"),
        (file_of(RED, "EPS"), "broken_image", "cannot be read: UnidentifiedImageError"),
        (claiming(10, 10), "broken_image", "cannot be read"),
        (claiming(20_000, 20_000), "huge_image", "too large|400000000|20000 x 20000"),
        (claiming(8193, 8192), "huge_image", r"has 8193 x 8192 pixels, above 67,108,864; make it smaller"),
    ],
)
def test_what_cannot_be_opened_is_named(content, reason, message):
    with pytest.raises(BadRowError, match=message) as raised:
        load_image(content)
    assert raised.value.reason == reason


def test_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(BadRowError, match=r"the picture 'empty\.png' holds no bytes"):
        load_image(tmp_path / "empty.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_any_damage_is_a_bad_row(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    content = file_of(noise, kind)
    for at in range(0, len(content), max(1, len(content) // 40)):
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]):
            with suppress(BadRowError):
                assert load_image(damaged).image.mode == "RGB"
