"""Weights that are sharded over ranks (FSDP2), made whole: for files and digests, and while responses are drawn.

A model that is not sharded goes through all of this unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_rlhf.ranks import is_first_rank


def is_sharded(module: nn.Module) -> bool:
    """Whether any part of a module is sharded over ranks: all of them must then compute alike, part by part."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all ranks must ask for it together where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors by name, detached, gathered one after another; all ranks must ask, and the first one gets them.

    Args:
        tensors: by name, sharded or not. Sharded ones come to lie on the CPU.

    Returns:
        The tensors on the first rank; nothing on the others.
    """
    gathered = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if is_first_rank():
            gathered[name] = value.cpu() if isinstance(tensor, DTensor) else value
    return gathered


@contextmanager
def whole_weights(module: nn.Module, without: nn.Module | None = None) -> Iterator[None]:
    """Gather all weights of a sharded model inside the context; all ranks enter and leave together.

    Gathering layer by layer for every token that is drawn would cost a collective per layer and token, and bind the
    ranks to each other's longest response. Gathered once, each rank draws its own responses at its own pace, and needs
    room for the whole model.

    Args:
        module: the root of what is sharded, which has computed something before; or one that is not sharded, or whole
            already.
        without: a part of it that stays sharded.
    """
    apart = set() if without is None else set(without.modules())
    parts = [part for part in module.modules() if part not in apart]
    sharded = [part for part in parts if isinstance(part, FSDPModule)]
    if not any(isinstance(parameter, DTensor) for part in parts for parameter in part.parameters(recurse=False)):
        sharded = []
    try:
        for part in sharded:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for part in sharded:
            # As FSDP has it by itself: the root alone stays whole between its forward and its backward.
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()
