"""TRL's side of ``benchmarks/ppo.py``: one setting, measured in this process. Needs TRL 1.12, not this package."""

from __future__ import annotations

import argparse
import json
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import transformers
import trl
from datasets import Dataset
from ppo_meter import Noise, PhaseMeter
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

Plan = dict[str, Any]
Setting = dict[str, Any]


class Watch(TrainerCallback):
    """Feeds the meter."""

    def __init__(self, meter: PhaseMeter) -> None:
        self.meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The models are loaded."""
        self.meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An iteration has ended."""
        self.meter.step()


def watch_phases(meter: PhaseMeter, pad: int) -> None:
    """Tell the meter where phases begin, by what the trainer calls there: it has no hook for them."""
    draw, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten

    def watched_draw(model: torch.nn.Module, queries: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        meter.enter("rollout")
        drawn = draw(model, queries, *args)
        meter.count((drawn[0][:, queries.shape[1] :] != pad).sum(1).tolist())
        meter.enter("score")
        return drawn

    def watched_whiten(*args: Any, **kwargs: Any) -> torch.Tensor:  # of the advantages, with which scoring ends
        whitened = whiten(*args, **kwargs)
        meter.enter("update")
        return whitened

    ppo_trainer.batch_generation, ppo_trainer.masked_whiten = watched_draw, watched_whiten


def draw_by_common_noise() -> None:
    """Draw the same responses as the other side, for as long as the policies agree."""
    draw, iteration = ppo_trainer.batch_generation, count()

    def common_draw(model: torch.nn.Module, queries: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        noise, step = Noise(next(iteration), len(queries), model.config.vocab_size), count()

        def multinomial(weights: torch.Tensor, num_samples: int) -> torch.Tensor:
            return noise.draw(weights.log(), slice(None), next(step))[:, None]

        with mock.patch("torch.multinomial", multinomial):
            return draw(model, queries, *args)

    ppo_trainer.batch_generation = common_draw


def keep_order() -> None:
    """Let batches be the rows in their order, as on the other side: the trainer shuffles, and has no switch for it."""
    ppo_trainer.DataLoader = lambda *args, **options: DataLoader(*args, **{**options, "shuffle": False})


def load(plan: Plan, setting: Setting, auto_class: type, **options: Any) -> PreTrainedModel:
    """The model in the dtype, and in the quantisation, of the plan."""
    dtype = getattr(torch, plan["dtype"])
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = auto_class.from_pretrained(
        plan["model"],
        dtype=dtype,
        quantization_config=four_bits if plan["quantization"] == "nf4" else None,
        device_map={"": plan["device"]},
        **options,
    )
    if setting["gradient_checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # the trainer itself never does
    return model


def critic(plan: Plan, setting: Setting) -> PreTrainedModel:
    """A value model with an adapter, its head trained as well."""
    model = load(plan, setting, AutoModelForSequenceClassification, num_labels=1)
    peft.inject_adapter_in_model(lora(plan), model)  # a PeftModel would hide the body that the trainer looks for
    model.score.requires_grad_(True)
    return model


def lora(plan: Plan) -> peft.LoraConfig:
    """The adapter of policy and critic: on every linear layer, the heads left out."""
    return peft.LoraConfig(target_modules=r".*(self_attn|mlp)\.\w+_proj", **plan["lora"])


def make(plan: Plan, setting: Setting) -> PPOTrainer:
    """The trainer: TRL's defaults but for what the plan says."""
    tokenizer = AutoTokenizer.from_pretrained(plan["model"], padding_side="left")
    prompts = [json.loads(line)["prompt"] for line in Path(plan["rows"]).read_text().splitlines()]
    batches = plan["steps"] * plan["batch_size"]
    arguments = PPOConfig(
        output_dir=plan["scratch"],
        per_device_train_batch_size=plan["batch_size"],
        total_episodes=batches,
        num_ppo_epochs=plan["num_ppo_epochs"],
        num_mini_batches=plan["num_minibatches"],
        local_rollout_forward_batch_size=setting["rollout_rows"],
        response_length=plan["max_new_tokens"],
        temperature=1.0,
        stop_token="eos",
        learning_rate=plan["lr"],
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        bf16=plan["dtype"] == "bfloat16",
        use_cpu=plan["device"] == "cpu",
        disable_tqdm=True,
    )
    return PPOTrainer(
        arguments,
        processing_class=tokenizer,
        model=load(plan, setting, AutoModelForCausalLM),
        ref_model=None,  # the policy with its adapter off
        reward_model=load(plan, setting, AutoModelForSequenceClassification, num_labels=1),
        value_model=critic(plan, setting),
        train_dataset=Dataset.from_dict({"input_ids": tokenizer(prompts).input_ids}),
        peft_config=lora(plan),
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
    keep_order()
    draw_by_common_noise()
    trainer = make(plan, options.setting)
    watch_phases(meter, trainer.processing_class.pad_token_id)
    trainer.add_callback(Watch(meter))
    trainer.train()
    versions = {package.__name__: package.__version__ for package in (trl, transformers, peft, torch)}
    options.out.write_text(json.dumps({**meter.result(), "versions": versions}))


if __name__ == "__main__":
    main()
