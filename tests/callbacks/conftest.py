"""What the callbacks watch: a small policy that learns pairs in anyone's Trainer, and an algorithm with rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader

from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.callbacks.iterations import iterations_done
from lit_rlhf.metrics.phases import Phases
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.types import Forest, PreferenceBatch, PreferencePairs, Segment

PROMPTS = ("What is the capital of France?", "Tell me a story.", "Thank you")


class Policy(LightningModule):
    """Raises the log-probability of the chosen responses; stops at step ``fails_at`` with ``error``."""

    def __init__(self, model: Backbone, fails_at: int = -1, error: Exception | None = None) -> None:
        super().__init__()
        self.model, self.fails_at, self.error = model, fails_at, error

    def loss(self, batch: PreferenceBatch) -> torch.Tensor:
        (pairs,) = batch.micro_batches
        logprobs = self.model.token_logprobs(pairs.forest).logprobs
        sums = logprobs.new_zeros(pairs.forest.num_sequences).index_add(0, pairs.forest.sequences, logprobs)
        return -logsigmoid(sums[pairs.chosen] - sums[pairs.rejected]).mean()

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise self.error
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch), batch_size=2)

    def predict_step(self, batch, batch_idx):
        return [{"row": row, "margin": 1.0} for row in batch.micro_batches[0].rows]

    def configure_optimizers(self):
        return torch.optim.AdamW([weight for weight in self.parameters() if weight.requires_grad], lr=0.01)


class Rollouts(LightningModule):
    """Plays an algorithm with rollouts: two optimizer steps on random targets in each iteration.

    It logs row ``iteration`` of ``logged`` and answers each held-out prompt with a number.
    """

    def __init__(self, logged: Sequence[dict[str, float]] = ()) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.phases = Phases()
        self.logged = logged
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.iterations: list[int] = []

    def training_step(self, batch, batch_idx):
        iteration = iterations_done(self.trainer)
        self.iterations.append(iteration)
        optimizer = self.optimizers()
        with self.phases("rollout"):
            target = torch.randn(3)
            self.phases.progress(3, 3)
        with self.phases("update"):
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward((self.weight - target).square().sum())
                optimizer.step()
        if iteration < len(self.logged):
            self.log_dict(self.logged[iteration])

    def validation_step(self, batch, batch_idx):
        iteration = iterations_done(self.trainer)
        self.log("val/score", torch.tensor(float(iteration % 3)), batch_size=len(batch))
        return [
            {
                "prompt": prompt,
                "response": f"answer {iteration}",
                "score": iteration + 0.5,
                "rewards": {"kind": 1.0},
                "kl": 0.25 * iteration,
                "length": 7,
                "finished": True,
            }
            for prompt in batch
        ]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


@pytest.fixture
def rollouts() -> type[Rollouts]:
    """``rollouts(logged)``: a module that plays an algorithm with rollouts."""
    return Rollouts


@pytest.fixture
def iterate(tmp_path: Path) -> Callable[..., Trainer]:
    """``iterate(module, *callbacks, num=3, **options)``: so many iterations an epoch, in ``tmp_path``."""

    def run(module: LightningModule, *callbacks: Any, num: int = 3, ckpt_path: Any = None, **options: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        trainer = Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **{**settings, **options})
        own = torch.Generator()  # else every pass over the data draws a number from that of training
        prompts = DataLoader([list(PROMPTS[:2]), list(PROMPTS[2:])], batch_size=None, generator=own)
        batches = DataLoader(range(num), generator=own)
        trainer.fit(module, batches, prompts, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


@pytest.fixture
def backbone(tiny_llama: Callable[..., Path]) -> Backbone:
    """A policy with LoRA on the tiny Llama."""
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4)), reference="none")


@pytest.fixture
def policy(backbone: Backbone) -> Callable[..., Policy]:
    """``policy(fails_at, error, model)``: a policy on ``backbone`` unless another model is given."""
    return lambda fails_at=-1, error=None, model=None: Policy(model or backbone, fails_at, error)


@pytest.fixture
def reward(tiny_llama: Callable[..., Path]) -> Callable[..., RewardModule]:
    """``reward(enabled, **options)``: a reward model on the tiny Llama, with LoRA or whole."""

    def make(enabled: bool = True, **options: Any) -> RewardModule:
        torch.manual_seed(0)
        config = BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=enabled, r=4))
        return RewardModule(config, optimizer=partial(torch.optim.AdamW, lr=0.01), **options)

    return make


@pytest.fixture(scope="session")
def batches(tiny_tokenizer) -> DataLoader[PreferenceBatch]:
    """Three batches with the same three prompts."""

    def tree(prompt: str) -> list[Segment]:
        ids = [tiny_tokenizer(text)["input_ids"] for text in (prompt, "Paris is kind.", "Go away.")]
        return [Segment(tokens, [part > 0] * len(tokens), min(part, 1) - 1) for part, tokens in enumerate(ids)]

    def batch(number: int) -> PreferenceBatch:
        rows = tuple(f"pairs.jsonl:{3 * number + row}" for row in range(3))
        first = torch.arange(3) * 2
        forest = Forest.pack(map(tree, PROMPTS))
        return PreferenceBatch((PreferencePairs(forest, first, first + 1, torch.zeros(3), rows, ("a",) * 3),), {})

    return DataLoader([batch(number) for number in range(3)], batch_size=None, collate_fn=lambda batch: batch)


@pytest.fixture
def train(tmp_path: Path, batches: DataLoader[PreferenceBatch]) -> Callable[..., Trainer]:
    """``train(policy, *callbacks, **options)``: three steps with a validation after each epoch, in ``tmp_path``."""

    def run(policy: LightningModule, *callbacks: Any, ckpt_path: str | None = None, **options: Any) -> Trainer:
        settings = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "log_every_n_steps": 1,
            "limit_val_batches": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        trainer = Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **{**settings, **options})
        trainer.fit(policy, batches, batches, ckpt_path=ckpt_path)
        return trainer

    return run
