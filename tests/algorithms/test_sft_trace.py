"""Ten steps of SFT against numbers kept in tests/golden: a change that should not change numbers does not.

The weights follow a formula, so that neither the generator of random numbers nor the order of construction has a say.
To write the file anew, on purpose, run this test with LIT_RLHF_WRITE_GOLDEN=1 and say so in the changelog.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from lit_rlhf.algorithms.sft import SFTModule

GOLDEN = Path(__file__).parents[1] / "golden" / "sft_trace.json"
COLUMNS = ("train/loss", "train/nll", "train/token_accuracy", "train/entropy", "train/grad_norm")


@torch.no_grad()
def by_formula(model):
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if "norm" in name:
            parameter.fill_(1.0)
        elif "lora_B" not in name:
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.15 * torch.sin(index * index * 0.37 + number)).reshape(parameter.shape))
    return model


def test_ten_steps(tiny_llama, make_text_batches, fit):
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = by_formula(get_peft_model(LlamaForCausalLM.from_pretrained(tiny_llama()), config))
    module = SFTModule(model, label_smoothing=0.1, optimizer=partial(torch.optim.AdamW, lr=1e-2))
    logger = fit(module, make_text_batches(40, 4, 60)).logger
    trace = {name: logger.column(name) for name in COLUMNS}
    if "LIT_RLHF_WRITE_GOLDEN" in os.environ:
        GOLDEN.write_text(json.dumps(trace, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name in COLUMNS:
        assert len(golden[name]) == 10
        assert trace[name] == pytest.approx(golden[name], rel=1e-4, abs=1e-5), name
