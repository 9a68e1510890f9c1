"""What the tests of rollouts share: for the samplers a backbone that has opinions, prompts and requests; for what is
learnt from rollouts ragged responses with garbage behind them, and small policies.
"""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader

from lit_rlhf.models.building import build_backbone, build_policy
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions, SamplingRequest
from lit_rlhf.types import Forest, Prompt, Rollouts, Segment

LENGTHS = (1, 40, 5, 12)


def make_prompt(tokens, row="rows.jsonl:0"):
    return Prompt(tuple(tokens), "", (), {}, row, "rows")


@pytest.fixture
def sampled_backbone(tiny_llama):
    """Factory of backbones whose weights, adapter included, are large enough to prefer some tokens to others."""

    def make(folder=None, scale=0.1, **options):
        config = BackboneConfig(str(folder or tiny_llama()), lora=LoraOptions(r=4, alpha=8), **options)
        backbone = build_backbone(config)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "lora_" in name:
                    noise = scale * torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(noise.to(parameter.dtype))
        return backbone

    return make


@pytest.fixture
def make_request(tiny_tokenizer):
    """Factory of requests for prompts of very different lengths; seeds are counted from 100."""

    def make(lengths=LENGTHS, stop_tokens=(2,), seeds=None, prompts=None, **options):
        if prompts is None:
            prompts = [
                make_prompt([7 + (31 * number + 11 * at) % 290 for at in range(length)], f"rows.jsonl:{number}")
                for number, length in enumerate(lengths)
            ]
        settings = SamplingOptions(**{"num_responses": 1, "max_new_tokens": 12, **options})
        seeds = seeds or range(100, 100 + len(prompts) * settings.num_responses)
        return SamplingRequest(prompts, settings, list(stop_tokens), tiny_tokenizer, list(seeds))

    return make


@pytest.fixture
def trainer_logprobs():
    """What training says of rollouts: log-probabilities of the packed forest, in the order of the response mask."""

    @torch.no_grad()
    def compute(backbone, rollouts, temperature=1.0):
        trees = []
        for prompt, tokens, mask in zip(rollouts.prompts, rollouts.tokens, rollouts.response_mask, strict=True):
            response = tokens[mask].tolist()
            trees.append(
                [
                    Segment(prompt.tokens, [False] * len(prompt.tokens)),
                    Segment(response, [True] * len(response), 0),
                ]
            )
        return backbone.token_logprobs(Forest.pack(trees), temperature=temperature).logprobs

    return compute


def responses_of(rollouts):
    """Token ids of each response."""
    return [tokens[mask].tolist() for tokens, mask in zip(rollouts.tokens, rollouts.response_mask, strict=True)]


@pytest.fixture
def responses():
    """Reads the token ids of each response out of rollouts."""
    return responses_of


def tokens(length, seed):
    return tuple(6 + (seed * 31 + at * at * 7 + at * seed) % 314 for at in range(length))


def prompt(number):
    return Prompt(tokens(2 + number * 5 % 7, number), f"prompt {number}", (), {}, f"train:{number + 1}", "train")


def rollouts(numbers=range(4), repeats=2, garbage=False):
    """``repeats`` responses to the prompts of these numbers, of 1 to 6 tokens, with 0 or garbage behind them."""
    prompts = [prompt(number) for number in numbers for _ in range(repeats)]
    lengths = [1 + (number * 3 + repeat * 4) % 6 for number in numbers for repeat in range(repeats)]
    width = max(lengths, default=1) + 2 * garbage
    mask = torch.arange(width) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    drawn = torch.full(mask.shape, 317 if garbage else 0)
    logprobs = torch.full(mask.shape, float("nan") if garbage else 0.0)
    for row, length in enumerate(lengths):
        seed = 100 * numbers[row // repeats] + row % repeats
        drawn[row, :length] = torch.tensor(tokens(length, seed))
        logprobs[row, :length] = -torch.rand(length, generator=torch.Generator().manual_seed(seed))
    groups = torch.arange(len(numbers)).repeat_interleave(repeats)
    finished = torch.tensor([member % 3 != 1 for member in range(len(lengths))], dtype=torch.bool)
    return Rollouts(tuple(prompts), groups, drawn, mask, logprobs, finished)


@pytest.fixture(scope="session")
def numbered_prompt():
    """A prompt by its number."""
    return prompt


@pytest.fixture(scope="session")
def make_rollouts():
    """Ragged responses: ``make_rollouts(numbers, repeats, garbage)``."""
    return rollouts


@pytest.fixture
def make_policy(tiny_llama):
    """Policies on the tiny Llama that have moved away from their reference."""

    def make(seed=0, **lora):
        torch.manual_seed(seed)
        policy = build_policy(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4, **lora)))
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return policy

    return make


class Memory(Logger):
    """Keeps what is logged."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append(dict(metrics))


@pytest.fixture
def fit(tmp_path):
    """Trains a module on batches, quietly, on one CPU."""

    def run(module, batches, validation=None, **options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        logger, shape = Memory(), {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1}
        trainer = lightning.Trainer(default_root_dir=tmp_path, logger=logger, **{**quiet, **shape, **options})
        loaders = [DataLoader(x, batch_size=None, collate_fn=lambda x: x) for x in (batches, validation or [])]
        trainer.fit(module, *loaders[: 1 + (validation is not None)])
        return trainer

    return run
