"""predictions.jsonl."""

from __future__ import annotations

import json

import pytest
from lightning.pytorch import Trainer

from lit_rlhf.callbacks.predictions import PredictionsFile


@pytest.mark.parametrize("given", [None, "mine/out.jsonl"])
def test_one_line_per_row_in_the_order_of_the_data(given, policy, batches, tmp_path):
    file = tmp_path / (given or "predictions.jsonl")
    callback = PredictionsFile(given and str(file))
    options = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[callback], **options)
    for _ in range(2):  # a second time replaces the first
        trainer.predict(policy(), batches, return_predictions=False)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == [{"row": f"pairs.jsonl:{number}", "margin": 1.0} for number in range(9)]
