"""The spread of scores that is stored belongs to the last weights, also where the last step was not validated."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from datamodules import PreferenceDataModule
from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.callbacks.score_spread import ScoreSpread
from lit_rlhf.models.options import BackboneConfig, LoraOptions

ROWS = [
    {"prompt": f"Question {n}?", "chosen": "Paris. " * (1 + n % 3), "rejected": "Rome. " * (1 + n % 2)}
    for n in range(8)
]


class Measured(Callback):
    """Counts the scored validation batches at the end."""

    def __init__(self):
        self.num = 0

    def on_train_end(self, trainer, pl_module):
        self.num = int(pl_module.model.score.num_responses)


@pytest.mark.parametrize("max_steps", [2, 3])
def test_the_last_weights_are_measured(max_steps, tiny_llama, tiny_tokenizer, tmp_path):
    torch.manual_seed(0)
    module = RewardModule(
        BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4)),
        optimizer=lambda weights: torch.optim.SGD(weights, lr=1.0),
    )
    data = PreferenceDataModule(train=ROWS, validation=ROWS[:5], tokenizer=tiny_tokenizer, batch_size=2)
    trainer = Trainer(
        accelerator="cpu", max_steps=max_steps, val_check_interval=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[ScoreSpread(), measured := Measured()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert measured.num == 10
    assert data.summary()["pairs"] == 2 * max_steps, "what is measured is not trained on"
    with torch.no_grad():
        scores = torch.cat(
            [module.model.eval().scores(part.forest) for batch in data.val_dataloader() for part in batch.micro_batches]
        )
    assert float(module.model.score.mean) == pytest.approx(float(scores.mean()), abs=1e-5)
    assert float(module.model.score.std) == pytest.approx(float(scores.std()), abs=1e-5)


def test_without_validation_nothing_is_known(tiny_llama, tiny_tokenizer, tmp_path):
    module = RewardModule(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4)))
    data = PreferenceDataModule(train=ROWS, tokenizer=tiny_tokenizer, batch_size=4)
    Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[ScoreSpread()],
    ).fit(module, datamodule=data)  # fmt: skip
    assert not module.model.score.is_measured
