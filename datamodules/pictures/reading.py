"""The pictures of a record, for an encoder: opened, prepared, and put in the place of their marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from PIL.Image import Image
from transformers import PreTrainedTokenizerBase

from datamodules.pictures.finding import find_image
from datamodules.pictures.opening import load_image
from datamodules.pictures.processors import PictureProcessor, holds_processor, load_processor
from datamodules.records import BadRowError, Record
from lit_rlhf.types import Picture

ImageUse = Literal["see", "ignore"]


class SeenPicture(NamedTuple):
    """A picture of a record, as a model sees it.

    Args:
        picture: what the tower takes.
        tokens: ids that take the place of its mark.
        size: width and height of the original in pixels.
        is_moving: whether only the first of several frames is seen.
    """

    picture: Picture
    tokens: Sequence[int]
    size: tuple[int, int]
    is_moving: bool = False


@dataclass(frozen=True)
class PictureOptions:
    """What a user says about pictures.

    Args:
        processor: folder, hub name or a processor; None = what lies beside the tokenizer.
        images: ``see`` shows them to the model; ``ignore`` leaves them out, and their marks are text.
        image_dir: folder that paths of pictures are relative to; None = that of the data file.

    Raises:
        ValueError: if ``images`` is neither, or there is no such folder.
    """

    processor: Any = None
    images: ImageUse = "see"
    image_dir: str | None = None

    def __post_init__(self) -> None:
        """Check what was given."""
        if self.images not in get_args(ImageUse):
            raise ValueError(f"data.images is {self.images!r}; it must be one of {', '.join(get_args(ImageUse))}")
        if self.image_dir is not None and not Path(self.image_dir).expanduser().is_dir():
            raise ValueError(f"data.image_dir is {self.image_dir!r}, which is no folder")


class PictureReader:
    """Reads the pictures of records.

    Args:
        processor: of the model; None = it reads text alone.
        images: ``see`` or ``ignore``.
        image_dir: folder that paths are relative to; None = the folder of the record.
    """

    def __init__(
        self, processor: PictureProcessor | None = None, images: ImageUse = "see", image_dir: str | None = None
    ) -> None:
        self.processor = processor
        self.images: ImageUse = images
        self.image_dir = None if image_dir is None else Path(image_dir).expanduser()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Special tokens that text may hold only where a picture is."""
        return () if self.processor is None else (self.processor.mark,)

    def sees(self, record: Record) -> bool:
        """Whether the model is shown pictures of this record."""
        return bool(record.images) and self.images == "see"

    def read(self, record: Record) -> tuple[SeenPicture, ...]:
        """Open and prepare the pictures of a record.

        Raises:
            BadRowError: if one cannot be opened or prepared, or the model sees none.
        """
        if not self.sees(record):
            return ()
        if self.processor is None:
            message = (
                "the row shows pictures, but there is no processor of pictures, so the model reads text alone; use a "
                "vision-language model, or set data.images=ignore to train without looking"
            )
            raise BadRowError("unseen_images", message)
        return tuple(
            self._read(self.processor, number, reference, record) for number, reference in enumerate(record.images)
        )

    def references(self, record: Record) -> list[str | bytes | Image | None]:
        """The pictures of a record for a reward function, which may open them with :func:`datamodules.open_image`.

        Returns:
            For each its whole path, its content or the picture itself; None for one that is not to be had.
        """
        return [self._reference(reference, record) for reference in record.images]

    def put_in(
        self, pictures: Sequence[SeenPicture], ids: Sequence[int], scored: Sequence[bool] = ()
    ) -> tuple[list[int], list[bool]]:
        """Put the tokens of pictures in the place of their marks.

        Args:
            pictures: of the record.
            ids: token ids with one mark for each picture.
            scored: one bool per token; True = trained. Tokens of pictures never are. Empty = none.

        Returns:
            Token ids, and one bool for each.

        Raises:
            BadRowError: if there is not one mark for each picture, or an image token stands elsewhere.
        """
        scored = list(scored) or [False] * len(ids)
        if self.processor is None:
            return list(ids), scored
        special = {self.processor.mark_id, self.processor.image_token_id}
        places = [place for place, token in enumerate(ids) if token in special]
        if [ids[place] for place in places] != [self.processor.mark_id] * len(pictures):
            message = (
                f"{len(places)} image tokens {self.processor.mark!r} stand in the tokens for {len(pictures)} pictures"
            )
            raise BadRowError("image_marks", f"{message}; there is to be one for each")
        whole, flags, end = [], [], 0
        for place, seen in zip(places, pictures, strict=True):
            whole += [*ids[end:place], *seen.tokens]
            flags += [*scored[end:place], *[False] * len(seen.tokens)]
            end = place + 1
        return whole + list(ids[end:]), flags + scored[end:]

    def require_none(self, ids: Sequence[int]) -> None:
        """Refuse image tokens in a response.

        Raises:
            BadRowError: if there are any.
        """
        self.put_in((), ids)

    def is_whole(self, before: Sequence[int], after: Sequence[int]) -> bool:
        """Whether a cut has left all pictures whole, with the token before the first one.

        Args:
            before: token ids before the cut.
            after: what is left.
        """
        if self.processor is None or (token := self.processor.image_token_id) not in before:
            return True
        if list(after).count(token) < list(before).count(token):
            return False
        old, new = list(before).index(token), list(after).index(token)
        return list(before[max(0, old - 1) : old]) == list(after[max(0, new - 1) : new])

    def _reference(self, reference: object, record: Record) -> str | bytes | Image | None:
        try:
            found = find_image(reference, self._folder(record))
        except BadRowError:
            return None
        return str(found) if isinstance(found, Path) else found

    def _folder(self, record: Record) -> Path:
        return self.image_dir or Path(record.folder)

    def _read(self, processor: PictureProcessor, number: int, reference: object, record: Record) -> SeenPicture:
        try:
            opened = load_image(find_image(reference, self._folder(record)))
            picture, tokens = processor(opened.image)
        except BadRowError as error:
            raise BadRowError(error.reason, f"images[{number}]: {error}") from None
        except ValueError as error:
            size = "{} x {}".format(*opened.image.size)
            message = f"images[{number}]: the processor does not take a picture of {size} pixels: {error}"
            raise BadRowError("unfit_image", message) from None
        return SeenPicture(picture, tokens, opened.image.size, opened.is_moving)


TEXT_ALONE = PictureReader()
"""Refuses pictures."""


def picture_reader(options: PictureOptions, tokenizer: PreTrainedTokenizerBase) -> PictureReader:
    """Make a reader as a user wants it.

    Args:
        options: what the user says.
        tokenizer: of the data; the processor beside it is used unless another one is named.

    Raises:
        ValueError: if a processor that is named, or that lies in the tokenizer's folder, cannot be used.
    """
    return PictureReader(_processor(options, tokenizer), options.images, options.image_dir)


def _processor(options: PictureOptions, tokenizer: PreTrainedTokenizerBase) -> PictureProcessor | None:
    given = options.processor
    if not isinstance(given, str | None):
        return PictureProcessor(given, tokenizer)
    name = given or str(tokenizer.name_or_path)
    if given is None and not holds_processor(name):
        return None
    is_wanted = given is not None or (Path(name).is_dir() and options.images == "see")
    try:
        return load_processor(name, tokenizer)
    except ValueError:
        if is_wanted:
            raise
        return None  # such as a model of the hub that reads text alone
