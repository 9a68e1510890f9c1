"""The best state of a run by a metric: what a checkpoint callback with ``monitor`` keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def ranking_checkpoint(trainer: Trainer) -> ModelCheckpoint:
    """The checkpoint callback that knows which state is best.

    Raises:
        ValueError: if there is none with ``monitor``.
    """
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    ranking = [callback for callback in kept if callback.monitor is not None and callback.save_top_k != 0]
    if not ranking:
        raise ValueError(
            "weights: best needs a checkpoint callback that says which state is best: give trainer.callbacks a "
            "StepCheckpoint (IterationCheckpoint for algorithms with rollouts) with a `monitor`, such as val/loss"
        )
    return ranking[0]


def load_best(trainer: Trainer) -> str:
    """Give the module the weights of its best state. Call it on every rank.

    Returns:
        Which state that is and why, in words; empty if none was kept.
    """
    ranking = ranking_checkpoint(trainer)
    if not ranking.best_model_path:
        return ""
    checkpoint: dict[str, Any] = trainer.strategy.load_checkpoint(ranking.best_model_path, weights_only=True)
    trainer.lightning_module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=trainer.lightning_module.strict_loading)
    name = Path(ranking.best_model_path).stem
    return f"{name}, the best by {ranking.monitor} ({float(ranking.best_model_score or 0):.4g})"
