"""Our side of ``benchmarks/ppo.py``: one setting, measured in this process."""

from __future__ import annotations

import argparse
import json
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ppo_meter import PhaseMeter, draw_numbers
from ppo_watch import VERSIONS, CountedSampler, Watch, train

from datamodules import PromptDataModule
from lit_rlhf import BackboneConfig, LoraOptions, PPOModule
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rewards import ModelReward, WeightedReward
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.sampling import cached_sampler
from lit_rlhf.rollout.sampling.request import SamplingOptions, SamplingRequest
from lit_rlhf.types import Rollouts


class NumberedSampler(CountedSampler):
    """Draws by the numbers that the other side draws by."""

    def __init__(self, meter: PhaseMeter) -> None:
        super().__init__(meter)
        self.iterations = count()

    def __call__(self, backbone: Backbone, request: SamplingRequest) -> Rollouts:
        """Draw one response per seed."""
        numbers = draw_numbers(next(self.iterations), len(request.seeds), request.options.max_new_tokens)
        with mock.patch.object(cached_sampler, "uniforms", return_value=numbers):
            return super().__call__(backbone, request)


def make(plan: dict[str, Any], setting: dict[str, Any], meter: PhaseMeter) -> PPOModule:
    """The module to train."""
    backbone = BackboneConfig(
        plan["model"],
        quantization=plan["quantization"],
        dtype=plan["dtype"],
        lora=LoraOptions(r=plan["lora"]["r"], alpha=plan["lora"]["lora_alpha"]),
    )
    reward = ModelReward(plan["reward_model"], placement="backbone", token_budget=setting["token_budget"])
    return PPOModule(
        backbone,
        [WeightedReward(reward)],
        critic=CriticOptions(setting["critic"], init_from="fresh"),
        sampling=SamplingOptions(max_new_tokens=plan["max_new_tokens"]),
        sampler=NumberedSampler(meter),
        updates=UpdateOptions(plan["num_ppo_epochs"], plan["num_minibatches"], setting["token_budget"]),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=plan["lr"], eps=1e-5, weight_decay=0.0),
    )


def main() -> None:
    """Measure one setting of a plan, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("setting", type=json.loads)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    if plan["device"] == "cpu":
        torch.set_num_threads(1)
    meter = PhaseMeter(plan["device"], plan["warmup"])
    data = PromptDataModule(
        plan["rows"],
        tokenizer=plan["model"],
        batch_size=plan["batch_size"],
        max_prompt_length=plan["max_length"],
        shuffle_buffer=0,
    )
    module = make(plan, options.setting, meter)
    run = {name: plan[name] for name in ("device", "dtype", "scratch", "steps")}
    train(module, data, [Watch(meter)], **run)
    options.out.write_text(json.dumps({**meter.result(), "versions": VERSIONS}))


if __name__ == "__main__":
    main()
