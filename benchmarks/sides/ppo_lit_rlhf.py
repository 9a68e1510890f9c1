"""Our side of ``benchmarks/ppo.py``: one setting, measured in this process."""

from __future__ import annotations

import argparse
import json
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ppo_meter import Noise, PhaseMeter
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


class CommonSampler(CountedSampler):
    """Draws by the noise that the other side draws by."""

    def __init__(self, meter: PhaseMeter) -> None:
        super().__init__(meter)
        self.iterations = count()

    def __call__(self, backbone: Backbone, request: SamplingRequest) -> Rollouts:
        """Draw one response per seed; the random numbers of the sampler say which token of which response is asked."""
        num_tokens = request.options.max_new_tokens
        noise = Noise(next(self.iterations), len(request.seeds), backbone.num_embeddings)
        places = torch.arange(len(request.seeds) * num_tokens, dtype=torch.float64).view(-1, num_tokens)

        def draw(logits: torch.Tensor, numbers: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            asked = numbers.long()
            tokens = noise.draw(logits, asked // num_tokens, int(asked[0]) % num_tokens)
            return tokens, torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]

        with (
            mock.patch.object(cached_sampler, "uniforms", return_value=places),
            mock.patch.object(cached_sampler, "draw_tokens", draw),
        ):
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
        sampler=CommonSampler(meter),
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
