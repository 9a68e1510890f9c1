"""Files of pictures to pixels: upright, red green blue, of a bounded size."""

from __future__ import annotations

import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from datamodules.pictures.finding import Found
from datamodules.records import BadRowError

MAX_PIXELS = 1 << 26
"""Most pixels of a picture; a small file may claim any number, and each takes three bytes and more."""

# Those that PIL reads by itself: for others, such as EPS, it starts a program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_STILL = ("MPO",)  # a photo whose further frames are previews and depths; PIL opens it as JPEG


class OpenImage(NamedTuple):
    """A picture with its pixels.

    Args:
        image: in RGB, as it is meant to be looked at.
        is_moving: whether the file holds more frames, of which this is the first.
    """

    image: Image.Image
    is_moving: bool = False


def open_image(image: str | Path | bytes | Image.Image) -> Image.Image:
    """Open a picture that a reward function is given, as training does.

    What is transparent becomes white, a turned photo is turned upright, and of several frames the first is taken.

    Args:
        image: its whole path, what its file holds, or a PIL image.

    Raises:
        BadRowError: if it cannot be opened, with the reason.
    """
    return load_image(Path(image) if isinstance(image, str) else image).image


def load_image(found: Found) -> OpenImage:
    """Load the pixels of a picture.

    Args:
        found: a file, the content of one, or a picture in memory.

    Raises:
        BadRowError: if it is broken, of an unknown format, or too large.
    """
    where = f"the picture {found.name!r}" if isinstance(found, Path) else "a picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of much that is decided here
            return _load(found, where)
    except BadRowError:
        raise
    except Image.DecompressionBombError as error:
        raise BadRowError("huge_image", f"{where} is too large: {error}") from None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        said = "holds no bytes" if _is_empty(found) else f"cannot be read: {type(error).__name__}: {error}"
        raise BadRowError("broken_image", f"{where} {said}; mend or replace it") from None


def _load(found: Found, where: str) -> OpenImage:
    if isinstance(found, Image.Image):
        image = found
    else:
        image = Image.open(BytesIO(found) if isinstance(found, bytes) else found, formats=_formats())
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadRowError("huge_image", f"{where} has {width} x {height} pixels, above {MAX_PIXELS:,}; make it smaller")
    is_moving = image is not found and image.format not in _STILL and _has_second_frame(image)
    image.load()
    return OpenImage(_in_rgb(ImageOps.exif_transpose(image)), is_moving)


@cache
def _formats() -> list[str]:
    """Those that this build of PIL has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _has_second_frame(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would cut 16 bits off at 255
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.has_transparency_data:  # what lies under transparent pixels is arbitrary
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")


def _is_empty(found: Found) -> bool:
    if isinstance(found, Path):
        return found.is_file() and not found.stat().st_size
    return found == b""
