"""How the scores of a reward model spread on the validation data, as its last weights give them."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.metrics.moments import ScoreMoments
from lit_rlhf.models.heads.reward_model import RewardModel
from lit_rlhf.models.loading import evaluating
from lit_rlhf.types import JudgedSteps


class ScoreSpread(Callback):
    """Measures mean and spread once more at the end of a fit whose last step was not validated.

    Other models than reward models are passed over.
    """

    def __init__(self) -> None:
        self._step = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the weights of this step have been measured."""
        self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure, before anything is exported; every rank takes its share of the rows."""
        loader = trainer.val_dataloaders
        is_measured = self._step == trainer.global_step
        if is_measured or not isinstance(pl_module.model, RewardModel) or loader is None or loader == []:
            return
        moments = ScoreMoments().to(pl_module.device)
        trainer.validating = True  # the data module takes what is read in training for trained on
        try:
            with torch.no_grad(), evaluating(pl_module.model):
                for batch in loader:
                    for part in trainer.strategy.batch_to_device(batch, pl_module.device).micro_batches:
                        if not isinstance(part, JudgedSteps):
                            scores = pl_module.model.scores(part.forest)
                            moments.update(scores, torch.ones_like(scores))
        finally:
            trainer.training = True
        found = moments.compute()
        if "scores/std" in found:
            pl_module.model.score.measure(*(found[f"scores/{name}"] for name in ("mean", "std", "num_responses")))
