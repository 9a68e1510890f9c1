"""The random state of every process, in the checkpoint: a resumed run draws what the uninterrupted one would have.

Lightning saves none of it. States are lists and tensors, never NumPy arrays, so that checkpoints load with
``weights_only=True``.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Saves the generators of Python, NumPy, torch and CUDA per rank, and restores them before the first batch."""

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks; every rank has to call this, as Lightning does."""
        own = random_state()
        if not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [own]}
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states for the first batch: setting up still draws numbers."""
        self._pending = state_dict["ranks"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore what was loaded, once.

        Raises:
            ValueError: if the run went on with another number of processes.
        """
        if self._pending is None:
            return
        if len(self._pending) != trainer.world_size:
            raise ValueError(
                f"the checkpoint was written by {len(self._pending)} processes and this run has {trainer.world_size}: "
                "resume with the same number, or take RandomState out of trainer.callbacks"
            )
        set_random_state(self._pending[trainer.global_rank])
        self._pending = None


def random_state() -> dict[str, Any]:
    """The state of this process's generators, as lists, numbers and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
