"""Sampling from a model that is sharded over ranks (FSDP2): its weights are whole while responses are drawn.

Gathering layer by layer would cost a collective per layer and token, and bind the ranks to each other's longest
response. Gathered once, each rank draws its own responses at its own pace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


@contextmanager
def whole_weights(model: PreTrainedModel) -> Iterator[None]:
    """Gather the weights of a sharded model inside the context; all ranks enter and leave together.

    Each rank needs room for the whole model. A model that is not sharded is left as it is.

    Args:
        model: sharded by ``torch.distributed.fsdp.fully_shard``, itself as the root and any of its modules; or not.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not sharded:
        yield
        return
    # FSDP takes the module of the first forward for the root: that must not be a layer.
    model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device))
    try:
        for module in sharded:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for module in sharded:
            # As FSDP has it by itself: the root alone stays whole between its forward and its backward.
            module.set_reshard_after_forward(module is not sharded[0], recurse=False)
            module.reshard()
