"""Four iterations of PPO against numbers kept in tests/golden: a change that should not change numbers does not.

The weights follow a formula, and responses follow their rows, so that no generator of random numbers has a say. To
write the file anew, on purpose, run this test with LIT_RLHF_WRITE_GOLDEN=1 and say so in the changelog.
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

from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import KLOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions

GOLDEN = Path(__file__).parents[1] / "golden" / "ppo_trace.json"
COLUMNS = (
    *("rollout/score", "rollout/kl", "rollout/length", "rollout/entropy", "rollout/explained_variance"),
    *("train/policy_loss", "train/value_loss", "train/approx_kl", "train/grad_norm"),
)


def letters(response):
    return len(response) % 5 - 2.0


@torch.no_grad()
def by_formula(model):
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if "norm" in name:
            parameter.fill_(1.0)
        elif "lora_B" not in name:
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.15 * torch.sin(index * index * 0.37 + number)).reshape(parameter.shape))
    return model


def test_four_iterations(tiny_llama, tiny_tokenizer, make_prompts, fit):
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = by_formula(get_peft_model(LlamaForCausalLM.from_pretrained(tiny_llama()), config))
    module = PPOModule(
        model,
        [WeightedReward(FunctionReward(letters))],
        critic=CriticOptions(kind="shared", lr_factor=1.0),
        sampling=SamplingOptions(max_new_tokens=9, num_responses=2),
        kl=KLOptions(coef=0.1),
        tokenizer=tiny_tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=3e-3, eps=1e-5),
    )
    module.configure_model()
    with torch.no_grad():
        head = module.model.v_head.summary.weight
        head.copy_(0.1 * torch.cos(torch.arange(head.numel(), dtype=torch.float64)).reshape(head.shape))
    logger = fit(module, make_prompts(16, 4)).logger
    trace = {name: logger.column(name) for name in COLUMNS}
    if "LIT_RLHF_WRITE_GOLDEN" in os.environ:
        GOLDEN.write_text(json.dumps(trace, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name in COLUMNS:
        assert len(golden[name]) == 4
        assert trace[name] == pytest.approx(golden[name], rel=1e-3, abs=1e-4), name
