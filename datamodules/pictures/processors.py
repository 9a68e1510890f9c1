"""What a model makes of a picture: the tensors that its tower takes, and the tokens that the picture stands for.

Processors of transformers prepare pictures and spell out, in place of a mark such as ``<image>``, as many image tokens
as the tower gives features. All is asked of the processor itself, one picture at a time. Those of the Qwen-VL family
cannot be loaded without torchvision, which their part for films needs; their pictures tell by their grid how many
tokens they are. Text that attends to pictures, as that of Llama 3.2 Vision does, has one token for each, whatever its
tiles. Pictures are always prepared by PIL: torchvision is neither needed nor used, so numbers are alike everywhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL.Image import Image, new
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.types import Picture

Spelled = tuple[dict[str, Tensor], list[int]]
"""What the tower takes, and token ids that take the place of the mark."""

_FILES = ("processor_config.json", "preprocessor_config.json")
_OF_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
_OF_TILES = {"pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"}
_OF_GRIDS = {"<|image_pad|>": "<|vision_start|><|image_pad|><|vision_end|>", "<|image|>": "<|image|>"}
"""Marks of processors that tell tokens by grids, and how they are written where no chat template writes them."""


class PictureProcessor:
    """Makes pictures what one model takes.

    Args:
        processor: of the model, or its part for images where pictures tell their tokens by themselves.
        tokenizer: of the data.

    Attributes:
        mark: special token that stands for a picture in text.
        spelled: the mark as text holds it where no chat template writes it.
        mark_id: token id of the mark.
        image_token_id: token id that stands for one feature of a picture.

    Raises:
        ValueError: if it does not fit the tokenizer, or cannot take a picture.
    """

    def __init__(self, processor: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        images = vars(processor).get("image_processor", processor)
        name = type(processor).__name__
        vocabulary = tokenizer.get_vocab()
        self._spell: Callable[[Image], Spelled]
        if "image_grid_thw" in images.model_input_names:
            self.mark = next((mark for mark in _OF_GRIDS if mark in vocabulary), next(iter(_OF_GRIDS)))
            self.spelled = _OF_GRIDS[self.mark]
            self._spell = lambda image: _by_grid(images, self.mark_id, image)
        elif "aspect_ratio_ids" in images.model_input_names:
            self.mark = self.spelled = "<|image|>"
            self._spell = lambda image: _by_tiles(images, self.mark_id, image)
        elif images is not processor:
            self.mark = self.spelled = _mark_of(processor)
            self._spell = lambda image: _by_processor(processor, self.mark, image)
        else:
            raise ValueError(f"{name} does not say how many tokens a picture is; give the whole processor of the model")
        if self.mark not in vocabulary:
            raise ValueError(
                f"{name} marks pictures by {self.mark!r}, which is no token of {tokenizer.name_or_path!r}: the "
                "processor is another model's; set data.processor to the folder of the model"
            )
        self.mark_id = vocabulary[self.mark]
        self.image_token_id = self._tried(name, vocabulary)

    def __call__(self, image: Image) -> tuple[Picture, list[int]]:
        """Prepare a picture.

        Args:
            image: in RGB.

        Returns:
            The picture, and the token ids that take the place of its mark; mostly the image token alone, repeated.

        Raises:
            ValueError: if the processor refuses it, such as one that is far too narrow.
        """
        inputs, ids = self._spell(image)
        num_tokens = ids.count(self.image_token_id)
        return Picture(inputs, num_tokens, _digest(inputs, ids)), ids

    def _tried(self, name: str, vocabulary: dict[str, int]) -> int:
        """The image token, found by preparing a picture."""
        try:
            _, ids = self._spell(new("RGB", (64, 64)))
        except Exception as error:  # each processor fails in a way of its own where a setting is missing
            raise ValueError(f"{name} cannot take a picture: {type(error).__name__}: {error}") from error
        if not ids or max(ids) > max(vocabulary.values()):
            raise ValueError(f"{name} spells a picture as {ids}, which are no tokens of the tokenizer of the data")
        return Counter(ids).most_common(1)[0][0]


def load_processor(name: str, tokenizer: PreTrainedTokenizerBase) -> PictureProcessor:
    """Load the processor of a model, never running code that comes with it.

    Args:
        name: folder or hub name.
        tokenizer: of the data.

    Raises:
        ValueError: if there is none, it needs torchvision, or it does not fit the tokenizer.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.image_processing_auto import AutoImageProcessor  # by its front door needs torchvision

    try:
        images: Any = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
        if "image_grid_thw" not in images.model_input_names:
            images = AutoProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    except (ImportError, OSError, ValueError) as error:
        if "torchvision" in str(error).lower():
            raise ValueError(
                f"the processor of {name!r} needs torchvision, which is not installed: install it, or set data.images "
                "to ignore"
            ) from error
        raise ValueError(f"{name!r} holds no processor of pictures: {_line(error)}") from error
    return PictureProcessor(images, tokenizer)


def holds_processor(name: str) -> bool:
    """Whether a folder holds a processor; of a hub name nobody knows, so it may."""
    folder = Path(name)
    return any((folder / file).is_file() for file in _FILES) if folder.is_dir() else bool(name)


def _mark_of(processor: Any) -> str:
    """What a processor looks for in text: some open a picture by another token than they fill it with."""
    known = vars(processor)
    mark = known.get("boi_token") or known.get("image_token")
    if not mark:
        raise ValueError(f"{type(processor).__name__} does not say by which token text shows a picture")
    return str(mark)


def _by_processor(processor: Any, mark: str, image: Image) -> Spelled:
    """Let the processor write a text of nothing but a picture."""
    made = dict(processor(images=[image], text=[mark], add_special_tokens=False, return_tensors="pt"))
    ids = made["input_ids"][0].tolist()
    return {name: value for name, value in made.items() if name not in _OF_TEXT and isinstance(value, Tensor)}, ids


def _by_grid(processor: Any, mark_id: int, image: Image) -> Spelled:
    """Patches are merged by squares into one token each."""
    made = dict(processor(images=[image], return_tensors="pt"))
    num_tokens = int(made["image_grid_thw"].prod()) // processor.merge_size**2
    return made, [mark_id] * num_tokens


def _by_tiles(processor: Any, mark_id: int, image: Image) -> Spelled:
    """One token, whatever tiles the picture is cut into."""
    made = dict(processor(images=[image], return_tensors="pt"))
    return {name: value for name, value in made.items() if name in _OF_TILES}, [mark_id]


def _digest(inputs: dict[str, Tensor], ids: list[int]) -> str:
    found = hashlib.blake2b(repr(ids).encode(), digest_size=16)
    for name, value in sorted(inputs.items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def _line(error: Exception) -> str:
    """The first line that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
