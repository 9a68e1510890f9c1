"""PPO with a reward that is a Python function.

    python examples/ppo_function.py --iterations 20 --out runs/ppo_function

The function says what a good answer is: true, by a column of the row, and short. Two roles need nothing more: the
reference is the policy with its adapter off, and the critic is an adapter of its own on the same model.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from datamodules import PromptDataModule
from lit_rlhf import BackboneConfig, LoraOptions, PPOModule
from lit_rlhf.embedded import resolve
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import KLOptions, UpdateOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions

MODEL = resolve("embedded:tiny_llama")
OPPOSITES = {"hot": "cold", "young": "old", "big": "small", "early": "late", "full": "empty", "fast": "slow"}


def right_and_short(response: str, opposite: str) -> float:
    """1 if the response names the opposite, less 0.05 for each of its words; `opposite` is a column of the row."""
    words = re.findall(r"[a-z]+", response.lower())
    return float(opposite in words) - 0.05 * len(words)


class Scores(Callback):
    """The mean score of each iteration, as it is logged."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep and print it."""
        self.seen.append(float(trainer.callback_metrics["rollout/score"]))
        print(
            f"iteration {len(self.seen)}: score {self.seen[-1]:.3f}, "
            f"KL {trainer.callback_metrics['rollout/kl']:.2f} nats per response"
        )


def train(iterations: int, out: Path | None = None) -> list[float]:
    """Train, and return the mean score of the responses of each iteration.

    Args:
        iterations: batches of prompts.
        out: folder that the policy and its critic are saved to.
    """
    seed_everything(0)
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": f"Say the opposite of {word}."}], "opposite": opposite}
        for word, opposite in OPPOSITES.items()
    ]
    module = PPOModule(
        BackboneConfig(MODEL, dtype="float32", lora=LoraOptions(r=16)),
        rewards=[WeightedReward(FunctionReward(right_and_short))],
        sampling=SamplingOptions(num_responses=4, max_new_tokens=24),
        kl=KLOptions(coef=0.02),
        updates=UpdateOptions(num_epochs=2, num_minibatches=1),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, eps=1e-5, weight_decay=0.0),
    )
    scores = Scores()
    steps = iterations * module.updates.num_steps  # max_steps counts optimizer steps
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[scores],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=PromptDataModule(train=rows * iterations, tokenizer=MODEL, batch_size=len(rows)))
    if out is not None:
        module.model.save(out)
    return scores.seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20, help="batches of prompts")
    parser.add_argument("--out", type=Path, default=Path("runs/ppo_function"), help="folder of policy and critic")
    arguments = parser.parse_args()
    train(arguments.iterations, arguments.out)
