"""What all eyes have in common: pictures become rows of numbers, once while nothing of the tower is trained.

A picture goes through the tower and the projector of its model: once per pass, however many responses share it; and,
while both are frozen, once for all roles, passes and epochs, as its rows are then kept, the latest used ones, within a
bound of memory. What is kept was encoded by itself, so that it does not depend on what stood beside it: a resumed run
sees the same.

Shape letters: T tokens of a forest, n rows of a picture, H hidden size, B padded rows, W their width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_rlhf.models.padded import unfold
from lit_rlhf.models.vision.kinds import parts_beside_decoder
from lit_rlhf.types import Forest, Picture

MAX_BYTES = 2**30
"""Most memory for the rows of pictures that are kept: LLaVA-1.5 takes 4.5 MiB for one in half precision."""


class Features(NamedTuple):
    """What became of one picture.

    Args:
        rows: (n, H), in place of the embeddings of its image tokens, or what text attends to.
        deeper: (n, H) each, added to the hidden states behind the first layers, where the model does that.
    """

    rows: Tensor
    deeper: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(part.nbytes for part in (self.rows, *self.deeper))


class Looking(Protocol):
    """What responses that grow by one token at a time see of the pictures of their prompts."""

    def keep(self, living: Sequence[int]) -> None:
        """Go on with the responses at these places alone, ascending."""
        ...

    def inputs(self) -> dict[str, Any]:
        """What the decoder is given beside the newest tokens."""
        ...


class Vision(ABC):
    """The eyes of a model that reads pictures among text.

    Args:
        model: a Hugging Face model with a tower, adapters inside.
        max_bytes: most memory for what is kept.

    Attributes:
        image_token: id of the token that pictures take the place of; -1 where it takes none.
        refusal: why it takes no pictures at all; empty where it does.
        num_passes: pictures that went through the tower so far.
    """

    def __init__(self, model: PreTrainedModel, max_bytes: int = MAX_BYTES) -> None:
        self.model = model
        self.max_bytes = max_bytes
        self.num_passes = 0
        self.refusal = self._why_not()
        self.image_token = -1 if self.refusal else int(model.config.image_token_id)
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._num_bytes = 0

    @abstractmethod
    def decoder_inputs(self, forest: Forest) -> dict[str, Any]:
        """What the decoder is given for a forest with pictures.

        Raises:
            ValueError: if image tokens and pictures do not fit each other, or the model takes none.
        """

    @abstractmethod
    def own_forward(
        self, tokens: Tensor, mask: Tensor, positions: Tensor, pictures: Sequence[Picture], **options: Any
    ) -> Tensor:
        """Last hidden states (B, W, H) by the model's own code.

        Args:
            tokens: (B, W) int64, padded on either side.
            mask: (B, W) int64; 1 = a token, 0 = padding.
            positions: (B, W) int64, depths; a model that counts time, height and width apart finds its own.
            pictures: of all rows, one row after another, at least one.
            **options: for the model.

        Raises:
            ValueError: if image tokens and pictures do not fit each other, or the model takes none.
        """

    @abstractmethod
    def own_inputs(self, tokens: Tensor, mask: Tensor, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the model's own ``generate`` is given for rows that it can take together.

        The arguments are those of :meth:`own_forward`.
        """

    @abstractmethod
    def sample_picture(self) -> Picture:
        """A picture of the size that the config names, made of nothing, to try the model with.

        Raises:
            ValueError: if the config names no size that is known here.
        """

    @abstractmethod
    def _through_tower(self, pictures: Sequence[Picture]) -> list[Features]:
        """The rows of pictures, which go through the tower together."""

    def _why_not(self) -> str:
        """Why the model takes no pictures; empty where it does."""
        return ""

    def positions(self, forest: Forest) -> Tensor:
        """(1, T) depths of the tokens of a forest; (3, 1, T) where time, height and width of a picture count apart."""
        return forest.positions[None]

    def ahead(self, forest: Forest) -> list[int]:
        """For each segment, how much further than its depth the position of a token lies that would follow it."""
        return [0] * len(forest.lengths)

    def together(self, pictures: Sequence[Sequence[Picture]]) -> list[list[int]]:
        """Numbers of the rows that the model's own ``generate`` can take together, by the pictures of each row."""
        return [list(range(len(pictures)))]

    def looking(self, prefilled: Sequence[tuple[int, Mapping[str, Any]]], owners: Sequence[int]) -> Looking | None:
        """What responses see of the pictures of prompts that were computed as forests; None = it is all in the text.

        Args:
            prefilled: of each forest the number of prompts, and what the decoder was given.
            owners: number of the prompt of each response, ascending.
        """
        return None

    def shown_after(self, tokens: Tensor, mask: Tensor, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the decoder is given beside tokens that follow padded rows; of each the first axis is that of rows.

        The arguments are those of :meth:`own_forward`; the rows are padded on the left.
        """
        return {}

    def blank_inputs(self, forest: Forest) -> dict[str, Any]:
        """What the decoder is given beside a forest for all of its layers to compute, where there is no picture."""
        return {}

    def features(self, pictures: Sequence[Picture]) -> list[Features]:
        """The rows of pictures: with their gradient where tower or projector is trained, else kept for the next time.

        Raises:
            ValueError: if one was made for another number of image tokens, or the model takes none.
        """
        return [self._kept_rows(picture) for picture in pictures] if self.is_frozen else self._encoded(pictures)

    def _kept_rows(self, picture: Picture) -> Features:
        known = self._kept.pop(picture.digest, None)
        self._num_bytes -= 0 if known is None else known.nbytes
        if known is None or known.rows.device != self.model.device:
            # The same rows whoever asks first: in validation, under autocast, or while responses are drawn.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
                (known,) = self._encoded([picture])
        self._kept[picture.digest] = known
        self._num_bytes += known.nbytes
        while self._num_bytes > self.max_bytes:
            self._num_bytes -= self._kept.popitem(last=False)[1].nbytes
        return known

    def _encoded(self, pictures: Sequence[Picture]) -> list[Features]:
        self._refuse()
        features = self._through_tower(pictures)
        self.num_passes += len(pictures)
        return features

    def forget(self) -> None:
        """Let go of what is kept, and count anew."""
        self._kept.clear()
        self._num_bytes = self.num_passes = 0

    @property
    def is_frozen(self) -> bool:
        """Whether what it makes of a picture is the same in every role and after every step."""
        parts = [part for beside in parts_beside_decoder(self.model).values() for part in beside.modules()]
        if any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in parts):
            return False
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters(recurse=False))

    def own_states(self, forest: Forest) -> Tensor:
        """Last hidden states (T, H) by the model's own code, on one padded row per sequence with its pictures."""
        rows = unfold(forest)
        pictures = [picture for leaf in forest.leaves for picture in forest.seen_in(leaf)]
        states = self.own_forward(rows.tokens, rows.mask, rows.positions, pictures, use_cache=False)
        return states.flatten(0, 1)[rows.cells]

    def _different(self, pictures: Sequence[Picture]) -> dict[str, Features]:
        """Digest -> rows, of each picture once."""
        different = {picture.digest: picture for picture in pictures}
        return dict(zip(different, self.features([*different.values()]), strict=True))

    def _unmarked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Padded rows (B, W) in which nothing that pads is an image token."""
        return tokens.masked_fill(mask == 0, int(self.image_token == 0))

    def _image_tokens(self, tokens: Tensor, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """Which of the tokens (T,) are image tokens: bool (T,), and their indices."""
        self._refuse()
        is_image = tokens == self.image_token
        rows = is_image.nonzero()[:, 0]
        wanted = sum(picture.num_tokens for picture in pictures)
        if len(rows) != wanted:
            raise ValueError(
                f"the text has {len(rows)} image tokens (id {self.image_token}), and its {len(pictures)} pictures take "
                f"{wanted}: tokenizer, processor and model do not fit each other"
            )
        return is_image, rows

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters = (own for part in parts_beside_decoder(self.model).values() for own in part.parameters())
        dtype = next((own.dtype for own in parameters if own.is_floating_point()), self.model.dtype)
        device = self.model.device
        return {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in inputs.items()}

    def _refuse(self) -> None:
        if self.refusal:
            raise ValueError(
                f"'{self.model.name_or_path}' takes no pictures: {self.refusal}; leave them out of the rows, or set "
                "data.images to ignore"
            )


def beside_one_another(pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """The inputs of several pictures; where they are cut into different numbers of tiles, filled up with zeros."""
    joined = {}
    for name in pictures[0].inputs:
        parts = [picture.inputs[name] for picture in pictures]
        if len({part.shape[1:] for part in parts}) > 1:
            most = max(part.shape[1] for part in parts)
            fill = [0, 0] * (parts[0].ndim - 2)
            parts = [nn.functional.pad(part, [*fill, 0, most - part.shape[1]]) for part in parts]
        joined[name] = torch.cat(parts)
    return joined
