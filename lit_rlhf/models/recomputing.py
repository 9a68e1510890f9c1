"""What a checkpointed layer is computed again in: the role of its first pass, and all else that it was computed in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_rlhf.models.backbone import Backbone, Role

Within = Callable[[], AbstractContextManager[None]]
"""Makes a context, as often as it is needed."""


class PassAgain(AbstractContextManager[None]):
    """The context of a pass, as often as it is entered: once in every backward pass that needs its layers.

    Args:
        backbone: that computes.
        role: that it played.
        within: what the pass was computed in.
    """

    def __init__(self, backbone: Backbone, role: Role, within: Within) -> None:
        self._backbone, self._role, self._within = backbone, role, within
        self._contexts = ExitStack()

    def __enter__(self) -> None:
        if self._backbone.acting != self._role:
            self._contexts.enter_context(self._backbone.role(self._role))
        self._contexts.enter_context(self._within())

    def __exit__(self, *error: object) -> None:
        self._contexts.close()
