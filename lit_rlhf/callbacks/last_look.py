"""A run that is shorter than its ``val_check_interval`` looks at the held-out rows at its end."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer


class LastLook(Callback):
    """Brings the first look of training forward to the last batch where it would come after it.

    A look each so many batches that is never due would leave such a run without any held-out number.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the interval with the batches that there will be."""
        interval, batches = float(trainer.val_check_batch), num_batches(trainer)  # type: ignore[arg-type]
        if trainer.check_val_every_n_epoch is None and trainer.enable_validation and batches < interval < float("inf"):
            trainer.val_check_batch = int(batches)


def num_batches(trainer: Trainer) -> float:
    """Batches of the whole training, as far as that is known; infinity where it is not, or time alone ends it."""
    epoch, together = trainer.num_training_batches, trainer.accumulate_grad_batches
    by_epochs = float("inf") if trainer.max_epochs in (None, -1) else float(trainer.max_epochs) * epoch
    if trainer.max_steps == -1:
        return by_epochs
    if epoch == float("inf"):
        return float(trainer.max_steps * together)
    epochs, steps = divmod(trainer.max_steps, math.ceil(epoch / together))  # an epoch's last step may be a smaller one
    return min(by_epochs, epochs * epoch + steps * together)
