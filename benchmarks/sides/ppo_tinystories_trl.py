"""TRL's side of ``benchmarks/ppo_tinystories.py``: one run. Needs TRL 1.12, not this package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from ppo_meter import PhaseMeter
from ppo_stories import REWARDS, read_prompts
from ppo_trl import Watch, watch_phases
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

Plan = dict[str, Any]


def reward_by_function(function: Callable[[Sequence[str]], list[float]], tokenizer: PreTrainedTokenizerBase) -> Any:
    """Let a function of texts stand where the trainer wants a model: it takes no other rewards.

    Returns:
        What to pass as the reward model.
    """
    ask, stand_in = ppo_trainer.get_reward, torch.nn.Identity()

    def get_reward(model: Any, texts: torch.Tensor, pad: int, context_length: int) -> tuple[Any, torch.Tensor, Any]:
        if model is not stand_in:  # the value model is asked by the same function
            return ask(model, texts, pad, context_length)
        responses = tokenizer.batch_decode(texts[:, context_length:], skip_special_tokens=True)
        return None, torch.tensor(function(responses)), None

    ppo_trainer.get_reward = get_reward
    return stand_in


def make(plan: Plan) -> PPOTrainer:
    """The trainer, with the numbers of the plan; it clips no gradients."""
    tokenizer = AutoTokenizer.from_pretrained(plan["model"], padding_side="left")
    arguments = PPOConfig(
        output_dir=plan["scratch"],
        per_device_train_batch_size=plan["batch_size"],
        total_episodes=plan["steps"] * plan["batch_size"],
        num_ppo_epochs=plan["num_ppo_epochs"],
        num_mini_batches=plan["num_minibatches"],
        response_length=plan["max_new_tokens"],
        temperature=1.0,
        stop_token="eos",
        learning_rate=plan["lr"],
        lr_scheduler_type="constant",
        kl_coef=plan["kl_coef"],
        vf_coef=plan["vf_coef"],
        gamma=1.0,
        lam=plan["gae_lambda"],
        cliprange=plan["clip_range"],
        seed=plan["seed"],
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
    )
    critic = AutoModelForSequenceClassification.from_pretrained(plan["model"], num_labels=1)
    torch.nn.init.zeros_(critic.score.weight)
    return PPOTrainer(
        arguments,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(plan["model"]),
        ref_model=None,  # a copy of the policy
        reward_model=reward_by_function(REWARDS[plan["reward"]], tokenizer),
        value_model=critic,
        train_dataset=Dataset.from_dict({"input_ids": tokenizer(read_prompts(plan["train"])).input_ids}),
    )


def main() -> None:
    """Train one run of a plan, and keep the policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    torch.set_num_threads(1)
    set_seed(plan["seed"])
    meter = PhaseMeter("cpu", warmup=0)
    trainer = make(plan)
    watch_phases(meter, trainer.processing_class.pad_token_id)
    trainer.add_callback(Watch(meter))
    trainer.train()
    measured = meter.result()
    trainer.policy_model.save_pretrained(plan["policy"])
    course = [{"score": row["objective/scores"], "kl": row["objective/kl"]} for row in trainer.state.log_history]
    versions = {package.__name__: package.__version__ for package in (trl, transformers, torch)}
    options.out.write_text(json.dumps({**measured, "course": course, "versions": versions}))


if __name__ == "__main__":
    main()
