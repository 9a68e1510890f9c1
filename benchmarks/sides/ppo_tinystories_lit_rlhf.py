"""Our side of ``benchmarks/ppo_tinystories.py``: one run of PPOModule in a plain Trainer, its reward a function."""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

import torch
from ppo_meter import PhaseMeter
from ppo_stories import REWARDS, read_prompts
from ppo_watch import VERSIONS, CountedSampler, Watch, train
from torch.optim.lr_scheduler import LambdaLR

from datamodules import PromptDataModule
from lit_rlhf import BackboneConfig, LoraOptions, PPOModule
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import AdvantageOptions, ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions

Plan = dict[str, Any]


def make(plan: Plan, meter: PhaseMeter) -> PPOModule:
    """The module to train: every weight, the critic on the policy's trunk."""
    return PPOModule(
        BackboneConfig(plan["model"], lora=LoraOptions(enabled=False)),
        [WeightedReward(FunctionReward(REWARDS[plan["reward"]]))],
        critic=CriticOptions("shared", init_from="fresh", lr_factor=1.0),
        sampling=SamplingOptions(max_new_tokens=plan["max_new_tokens"]),
        sampler=CountedSampler(meter),
        kl=KLOptions(plan["kl_coef"]),
        scores=ScoreOptions(missing_eos_penalty=0.0),
        advantages=AdvantageOptions(gae_lambda=plan["gae_lambda"]),
        clipping=ClipOptions(plan["clip_range"]),
        updates=UpdateOptions(plan["num_ppo_epochs"], plan["num_minibatches"], max_grad_norm=plan["max_grad_norm"]),
        vf_coef=plan["vf_coef"],
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=plan["lr"], weight_decay=0.0),
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda _: 1.0),
        seed=plan["seed"],
    )


def main() -> None:
    """Train one run of a plan, and keep the policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    torch.set_num_threads(1)
    torch.manual_seed(plan["seed"])
    random.seed(plan["seed"])
    meter = PhaseMeter("cpu", warmup=0)
    watch = Watch(meter)
    prompts = itertools.islice(itertools.cycle(read_prompts(plan["train"])), plan["steps"] * plan["batch_size"])
    data = PromptDataModule(
        [{"prompt": prompt} for prompt in prompts],
        tokenizer=plan["model"],
        batch_size=plan["batch_size"],
        seed=plan["seed"],
    )
    module = make(plan, meter)
    run = {"device": "cpu", "dtype": "float32", "scratch": plan["scratch"], "steps": plan["steps"]}
    train(module, data, [watch], **run)
    measured = meter.result()
    module.model.backbone.save(plan["policy"])
    options.out.write_text(json.dumps({**measured, "course": watch.course, "versions": VERSIONS}))


if __name__ == "__main__":
    main()
