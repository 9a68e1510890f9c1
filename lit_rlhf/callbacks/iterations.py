"""How far training is, in the unit that its algorithm counts in.

An algorithm with rollouts takes many optimizer steps in one iteration, that is, for one training batch; ``global_step``
counts the former.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer


def iterations_done(trainer: Trainer) -> int:
    """Training batches done, those before a resume included; the one that has just ended counts in its last hook."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]


def counts_iterations(module: LightningModule) -> bool:
    """Whether a module is counted in iterations: it steps its optimizers itself."""
    return not module.automatic_optimization


def steps_done(trainer: Trainer) -> int:
    """Iterations done where the module is counted in them, else optimizer steps."""
    return iterations_done(trainer) if counts_iterations(trainer.lightning_module) else trainer.global_step


def moment(trainer: Trainer) -> str:
    """Where training is: ``iteration 12``, or ``step 12``."""
    return f"{'iteration' if counts_iterations(trainer.lightning_module) else 'step'} {steps_done(trainer)}"


def is_settled(trainer: Trainer) -> bool:
    """Whether a checkpoint of this moment, the end of a training batch, is one that nothing is lost by.

    Gradients of a step that is not whole are in no checkpoint, and a run that goes on from before a validation leaves
    that validation out.
    """
    loop = trainer.fit_loop.epoch_loop
    fetcher: Any = trainer.fit_loop._data_fetcher
    return not loop._should_accumulate() and not loop._should_check_val_fx(fetcher)
