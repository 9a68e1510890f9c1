"""What a checkpoint holds of a module: everything but the frozen base."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Checkpointed(Protocol):
    """A model that knows which of its tensors a checkpoint must hold: a Backbone, a RewardModel."""

    @property
    def checkpointed_names(self) -> set[str]:
        """Names, within the model, of those tensors."""

    def state_dict(self) -> dict[str, Tensor]:
        """All of its tensors."""


def drop_frozen(checkpoint: dict[str, Any], model: Checkpointed, prefix: str) -> None:
    """Take the frozen base out of a checkpoint that is about to be written.

    Args:
        checkpoint: of Lightning; changed in place.
        model: whose tensors are in it.
        prefix: of their names, such as ``model.``.
    """
    kept = _kept(model, prefix)
    frozen = {prefix + name for name in model.state_dict()} - kept
    checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name not in frozen}


def refuse_foreign(checkpoint: dict[str, Any], model: Checkpointed, prefix: str) -> None:
    """Refuse a checkpoint that lacks trained weights; loading is not strict, as the base is left out on purpose.

    Raises:
        ValueError: naming the first weight that is missing or has another shape.
    """
    stored = checkpoint["state_dict"]
    own = {prefix + name: value.shape for name, value in model.state_dict().items()}
    for name in sorted(_kept(model, prefix)):
        if name not in stored:
            raise ValueError(f"the checkpoint is of another model or adapter: it lacks {name}")
        if stored[name].shape != own[name]:
            raise ValueError(
                f"the checkpoint is of another model or adapter: {name} is {tuple(stored[name].shape)} in it and "
                f"{tuple(own[name])} here"
            )


def _kept(model: Checkpointed, prefix: str) -> set[str]:
    return {prefix + name for name in model.checkpointed_names}
