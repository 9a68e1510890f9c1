"""Modules of your own on the batches of these data modules: instructions to imitate, and thumbs up or down.

    python examples/own_module.py --steps 20

A batch holds all examples of one optimizer step, cut into micro-batches that are forests. ``Backbone.token_logprobs``
turns a forest into the log-probabilities of its trained tokens; the rest of a LightningModule is yours.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn.functional import logsigmoid

from datamodules import PreferenceDataModule, SFTDataModule
from lit_rlhf import BackboneConfig
from lit_rlhf.embedded import resolve
from lit_rlhf.models.building import build_backbone
from lit_rlhf.types import InstructionBatch, UnpairedBatch

MODEL = resolve("embedded:tiny_llama")


class OnForests(LightningModule):
    """A small Llama with a LoRA adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def configure_model(self) -> None:
        """Load the model; its adapter is the policy, and the model without it the reference."""
        if "model" not in self._modules:
            self.model = build_backbone(BackboneConfig(MODEL, dtype="float32"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a step, over all of its micro-batches."""
        loss = self.loss(batch)
        self.losses.append(float(loss))
        return loss

    def loss(self, batch: Any) -> Tensor:
        """Yours."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on what is trained."""
        return torch.optim.Adam([weight for weight in self.parameters() if weight.requires_grad], lr=1e-3)


class Imitation(OnForests):
    """Instruction tuning: the mean negative log-likelihood of all trained tokens of the step."""

    def loss(self, batch: InstructionBatch) -> Tensor:
        """Nats per token."""
        logprobs = [self.model.token_logprobs(part.forest).logprobs for part in batch.micro_batches]
        return -torch.cat(logprobs).mean()


class Thumbs(OnForests):
    """A response with a thumb up should become likelier than it was, one with a thumb down less likely."""

    def loss(self, batch: UnpairedBatch) -> Tensor:
        """-log sigmoid(+-beta log pi(y|x)/pi_ref(y|x)), the mean over responses."""
        losses = []
        for part in batch.micro_batches:
            policy = self.model.token_logprobs(part.forest).logprobs
            with torch.no_grad(), self.model.role("reference"):
                reference = self.model.token_logprobs(part.forest).logprobs
            ratios = policy.new_zeros(len(part.rows)).index_add(0, part.forest.sequences, policy - reference)
            losses.append(-logsigmoid(torch.where(part.labels, 0.1 * ratios, -0.1 * ratios)))
        return torch.cat(losses).mean()


def thumbs() -> list[dict[str, Any]]:
    """The embedded pairs, taken apart: an answer with a thumb up or down in each row."""
    with Path(resolve("embedded:dpo_train.jsonl")).open(encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    sides = (("chosen", True), ("rejected", False))
    return [{"prompt": p["prompt"], "completion": p[side], "label": label} for p in pairs for side, label in sides]


def main(steps: int) -> dict[str, list[float]]:
    """Train both for some steps.

    Args:
        steps: optimizer steps.

    Returns:
        The losses of each.
    """
    seed_everything(0)
    instructions = SFTDataModule(train=resolve("embedded:sft_train.jsonl"), tokenizer=MODEL, batch_size=32)
    judged = PreferenceDataModule(train=thumbs(), kind="unpaired", tokenizer=MODEL, batch_size=32)
    losses = {}
    for module, data in ((Imitation(), instructions), (Thumbs(), judged)):
        Trainer(accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False).fit(module, data)
        losses[type(module).__name__] = module.losses
        print(f"{type(module).__name__}: loss {module.losses[0]:.3f} -> {module.losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each")
    main(parser.parse_args().steps)
