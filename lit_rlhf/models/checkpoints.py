"""What a checkpoint holds of a module: everything but the frozen base, of which it holds a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_rlhf.models.whole import whole

NUM_SAMPLES = 16
"""Values of each frozen tensor that its digest is made from."""


class Checkpointed(Protocol):
    """A model that knows which of its tensors a checkpoint must hold: a Backbone, a RewardModel."""

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model."""

    @property
    def checkpointed_names(self) -> set[str]:
        """Names, within the model, of those tensors."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All of its weights."""

    def state_dict(self) -> dict[str, Tensor]:
        """All of its tensors."""


def drop_frozen(checkpoint: dict[str, Any], model: Checkpointed, prefix: str) -> None:
    """Take the frozen base out of a checkpoint that is about to be written, and say in it which base that is.

    Args:
        checkpoint: of Lightning; changed in place.
        model: whose tensors are in it.
        prefix: of their names, such as ``model.``.
    """
    kept = _kept(model, prefix)
    frozen = {prefix + name for name in model.state_dict()} - kept
    checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name not in frozen}
    checkpoint["base"] = {"name": str(model.base.name_or_path), "digest": frozen_digest(model)}


def refuse_foreign(checkpoint: dict[str, Any], model: Checkpointed, prefix: str) -> None:
    """Refuse a checkpoint that lacks trained weights; loading is not strict, as the base is left out on purpose.

    Raises:
        ValueError: naming the first weight that is missing or has another shape, or both bases where it was trained on
            another one.
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
    theirs, digest = checkpoint.get("base"), frozen_digest(model)
    if theirs is not None and theirs["digest"] != digest:
        raise ValueError(
            f"the checkpoint was trained on the base '{theirs['name']}' (digest {theirs['digest'][:12]}), and this run "
            f"has '{model.base.name_or_path}' (digest {digest[:12]}), whose frozen weights are others: take that base, "
            "at the same revision and with the same quantization"
        )


_digests: WeakKeyDictionary[Checkpointed, str] = WeakKeyDictionary()


@torch.no_grad()
def frozen_digest(model: Checkpointed) -> str:
    """A digest of the frozen weights of a model, adapters left out; computed once, as they never change.

    Samples of each tensor, rounded to bfloat16: the same on every device and in float32 as in bfloat16, but not the
    same once an adapter has been merged in or something was trained on.
    """
    if model not in _digests:
        digest, trained = hashlib.sha256(), model.checkpointed_names
        for name, parameter in model.named_parameters():
            parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
            is_adapter = any(part.startswith("lora_") or part == "modules_to_save" for part in parts)
            if is_adapter or name in trained:
                continue
            flat = whole(parameter.detach()).flatten()
            samples = flat[:: max(1, flat.numel() // NUM_SAMPLES)][:NUM_SAMPLES].float().bfloat16().cpu()
            digest.update(f"{'.'.join(parts)} {tuple(parameter.shape)} {samples.tolist()}\n".encode())
        _digests[model] = digest.hexdigest()
    return _digests[model]


def _kept(model: Checkpointed, prefix: str) -> set[str]:
    return {prefix + name for name in model.checkpointed_names}
