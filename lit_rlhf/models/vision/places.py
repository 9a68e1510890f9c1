"""Where the tokens of a forest stand: at their depth, or where time, height and width of a picture count apart.

Shape letters: T tokens of a forest.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_rlhf.models.vision.eyes import beside_one_another
from lit_rlhf.types import Forest, Picture


class Places(NamedTuple):
    """Where the tokens of a forest stand.

    Args:
        positions: (1, T) int64, depths; (3, 1, T) where time, height and width count apart.
        ahead: for each segment, how much further than its depth the position of a token lies that would follow it.
    """

    positions: Tensor
    ahead: list[int]


@runtime_checkable
class PlacedInSpace(Protocol):
    """A model that counts time, height and width of a picture apart."""

    def get_rope_index(self, input_ids: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (3, B, T) of rows (B, T), and how much further than their lengths they lead."""
        ...


def places(model: PreTrainedModel, forest: Forest, image_token: int) -> Places:
    """Where the tokens of a forest stand, each segment going on where its parent ends.

    Args:
        model: that reads them.
        forest: with pictures or without.
        image_token: id of the tokens that pictures take the place of.
    """
    core = model.base_model
    if not isinstance(core, PlacedInSpace):
        return Places(forest.positions[None], [0] * len(forest.lengths))
    following: list[int] = []
    positions = []
    for number, (start, length, parent) in enumerate(zip(forest.starts, forest.lengths, forest.parents, strict=True)):
        begin = following[parent] if parent >= 0 else 0
        pictures = [one for one, at in zip(forest.pictures, forest.holders, strict=True) if at == number]
        own = torch.arange(length).expand(3, -1)
        if pictures:
            tokens = forest.tokens[start : start + length].cpu()[None]
            inputs = {**_counted_apart(core, pictures), "mm_token_type_ids": (tokens == image_token).int()}
            own = core.get_rope_index(tokens, **inputs)[0][:, 0]
        positions.append(own + begin)
        following.append(begin + (int(own.max()) + 1 if length else 0))
    ahead = [end - depth for end, depth in zip(following, _depths(forest), strict=True)]
    return Places(torch.cat(positions, dim=1)[:, None].to(forest.tokens.device), ahead)


def _counted_apart(core: PlacedInSpace, pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """What positions depend on beside the tokens, on the CPU."""
    names = inspect.signature(core.get_rope_index).parameters
    return {name: value.cpu() for name, value in beside_one_another(pictures).items() if name in names}


def _depths(forest: Forest) -> list[int]:
    """Tokens from the root to the end of each segment."""
    return [sum(forest.lengths[part] for part in forest.path(number)) for number in range(len(forest.lengths))]
