"""How many pictures go through a tower, counted the same on both sides; needs torch alone."""

from __future__ import annotations

from typing import Any

from torch import nn


class TowerCount:
    """Counts the pictures that the tower of a model encodes: of both roles, of all responses, whatever for.

    Attributes:
        pictures: how many so far.
    """

    def __init__(self) -> None:
        self.pictures = 0

    def watch(self, model: nn.Module) -> None:
        """Count those of a model, adapters around it or not."""
        (tower,) = (part for name, part in model.named_modules() if name.endswith("vision_tower"))
        tower.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else kwargs["pixel_values"]
        self.pictures += len(pixels)

    def said(self) -> dict[str, int]:
        """What to write down."""
        return {"pictures": self.pictures}
