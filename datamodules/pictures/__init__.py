"""Pictures that rows refer to: found, opened, and made what the tower of a model takes."""

from datamodules.pictures.opening import open_image
from datamodules.pictures.processors import PictureProcessor, load_processor
from datamodules.pictures.reading import (
    TEXT_ALONE,
    ImageUse,
    PictureOptions,
    PictureReader,
    SeenPicture,
    picture_reader,
)

__all__ = [
    "TEXT_ALONE",
    "ImageUse",
    "PictureOptions",
    "PictureProcessor",
    "PictureReader",
    "SeenPicture",
    "load_processor",
    "open_image",
    "picture_reader",
]
