"""Pictures as a model takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Picture(NamedTuple):
    """One picture of a prompt, ready for the tower of a model.

    Its place in the text is a run of ``num_tokens`` image tokens; the pictures of a text stand in the order of their
    runs, and no other token of the text is an image token.

    Args:
        inputs: what the tower takes for this one picture, by name, the axis of pictures or patches first:
            ``{"pixel_values": (1, C, H, W)}``, or ``{"pixel_values": (P, D), "image_grid_thw": (1, 3)}``.
        num_tokens: image tokens that it takes the place of, at least one.
        digest: equal for equal ``inputs``; a key for what is computed of them.
    """

    inputs: Mapping[str, Tensor]
    num_tokens: int
    digest: str

    def to(self, device: torch.device) -> Picture:
        """The same picture with its tensors on ``device``."""
        return self._replace(inputs={name: value.to(device) for name, value in self.inputs.items()})
