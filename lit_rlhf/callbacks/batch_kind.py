"""Refuses data that an algorithm does not learn from, in words, before it trips over them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_args, get_type_hints

from lightning.pytorch import Callback, LightningModule, Trainer


class BatchKind(Callback):
    """Compares each batch with the type that the module's ``training_step`` is annotated with, where it is.

    Raises:
        ValueError: naming both, and the data module.
    """

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at a batch."""
        kinds = _kinds(type(pl_module))
        if not kinds or isinstance(batch, kinds):
            return
        data = type(trainer.datamodule).__name__ if trainer.datamodule is not None else "the data loader"  # type: ignore[attr-defined]
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"{type(pl_module).__name__} takes a {wanted}, and {data} gives a {type(batch).__name__}: "
            "see the `data` of the configuration of this algorithm"
        )

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start


def _kinds(module: type[LightningModule]) -> tuple[type, ...]:
    """Types that ``training_step`` says it takes; none where it does not say."""
    with suppress(NameError):  # a name that only type checkers import
        hint = get_type_hints(module.training_step).get("batch")
        kinds = get_args(hint) or (hint,)
        return kinds if all(isinstance(kind, type) for kind in kinds) else ()
    return ()
