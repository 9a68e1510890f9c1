"""What the tests of the algorithms share: ragged examples, batches, modules, a Trainer that remembers what it logs."""

from __future__ import annotations

import copy
import math
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch.nn.functional import log_softmax
from torch.utils.data import DataLoader

from datamodules.packing import (
    TokenPair,
    TokenResponse,
    TokenSequence,
    TokenTree,
    pack_graded,
    pack_pairs,
    pack_sequences,
    pack_steps,
)
from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.sampling.request import SamplingOptions
from lit_rlhf.types import Prompt, PromptBatch


class Memory(Logger):
    """Keeps what is logged: one dictionary per call, with its step."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name, version = "memory", 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append({"step": step, **metrics})

    def column(self, name):
        """All values of a metric, in order."""
        return [row[name] for row in self.rows if name in row]


def tokens(length, seed):
    return [6 + (seed * 31 + at * at * 7 + at * seed) % 314 for at in range(length)]


@pytest.fixture(scope="session")
def make_pairs():
    """Ragged pairs of tokens; a pair's number fixes it."""

    def make(number, start=0):
        return [
            TokenPair(
                tokens(2 + row * 5 % 9, row),
                tokens(1 + row * 3 % 8, 1000 + row),
                tokens(1 + row * 7 % 10, 2000 + row),
                margin=row % 3 / 2,
                row=f"train:{row + 1}",
                source="train",
            )
            for row in range(start, start + number)
        ]

    return make


@pytest.fixture(scope="session")
def make_batches(make_pairs):
    """Batches of ``size`` pairs out of ``number``, packed to a token budget."""

    def make(number, size, token_budget=10**6):
        pairs = make_pairs(number)
        return [pack_pairs(pairs[at : at + size], token_budget) for at in range(0, number, size)]

    return make


@pytest.fixture(scope="session")
def make_texts():
    """Ragged texts of two sources, some with two trained turns; a text's number fixes it."""

    def text(row):
        spans = [(2 + row * 5 % 9, False), (1 + row * 3 % 8, True), (row % 3, False), (row % 3 and 1 + row % 5, True)]
        scored = [flag for length, flag in spans for _ in range(length)]
        return TokenSequence(tokens(len(scored), row), scored, f"train:{row + 1}", ("train", "other")[row % 2])

    return lambda number: [text(row) for row in range(number)]


@pytest.fixture(scope="session")
def make_text_batches(make_texts):
    """Batches of ``size`` texts out of ``number``, packed to a token budget."""

    def make(number, size, token_budget=10**6):
        texts = make_texts(number)
        return [pack_sequences(texts[at : at + size], token_budget) for at in range(0, number, size)]

    return make


def grade(row, response):
    """0, a half or 1, with ties; unknown now and then."""
    return math.nan if (row + response) % 7 == 6 else (row * 2 + response * 3) % 5 // 2 / 2


def graded_tree(row, num_objectives):
    """Two to four responses; their ranks are those of their grades, an unknown one counting as the worst."""
    responses = [tokens(1 + (row * 3 + number * 5) % 8, 1000 * number + row) for number in range(2 + row % 3)]
    grades = [[grade(row + 4 * k, number) for k in range(num_objectives)] for number in range(len(responses))]
    whole = [-1.0 if math.isnan(first) else first for first, *_ in grades]
    return TokenTree(
        tokens(2 + row * 5 % 9, row),
        [TokenResponse(response, [True] * len(response)) for response in responses],
        ranks=[sum(other > mine for other in whole) for mine in whole],
        grades=grades,
        row=f"train:{row + 1}",
        source=("train", "other")[row % 2],
    )


def step_tree(row):
    """One or two responses of two to four steps, which are right, wrong, between, or not judged."""
    counts = [2 + (row + number) % 3 for number in range(1 + row % 2)]
    lengths = [[1 + (row + step) % 3 for step in range(count)] for count in counts]
    labels = [[(0.0, 1.0, 0.5, math.nan)[(row + step) % 4] for step in range(count)] for count in counts]
    ends = [[at == length - 1 for length in steps for at in range(length)] for steps in lengths]
    responses = [TokenResponse(tokens(len(scored), 100 * n + row), scored) for n, scored in enumerate(ends)]
    return TokenTree(
        tokens(2 + row * 5 % 9, row),
        responses,
        step_labels=[label for steps in labels for label in steps],
        row=f"train:{row + 1}",
        source=("train", "other")[row % 2],
    )


@pytest.fixture(scope="session")
def judgements(make_pairs):
    """How rows of a kind of judgement are packed, and the first ``number`` of them: graded by one or two objectives."""
    return {
        "pairs": (pack_pairs, make_pairs),
        "graded": (pack_graded, lambda number: [graded_tree(row, 1) for row in range(number)]),
        "objectives": (pack_graded, lambda number: [graded_tree(row, 2) for row in range(number)]),
        "steps": (pack_steps, lambda number: [step_tree(row) for row in range(number)]),
    }


@pytest.fixture(scope="session")
def make_judged(judgements):
    """Batches of ``size`` out of ``number`` rows of a kind of judgement, packed to a token budget."""

    def make(kind, number, size, token_budget=10**6, step=1):
        pack, rows_of = judgements[kind]
        rows = rows_of(number)
        return [pack(rows[at : at + size][::step], token_budget) for at in range(0, number, size)]

    return make


@pytest.fixture
def make_module(tiny_llama):
    """Modules on the tiny Llama, seeded; ``backbone`` and ``lora`` are settings of theirs."""

    def make(backbone=None, lora=None, lr=0.5, optimizer=torch.optim.SGD, seed=0, kind=DPOModule, **options):
        torch.manual_seed(seed)
        config = {"name_or_path": str(tiny_llama()), "fused": False, **(backbone or {})}
        lora = LoraOptions(**{"r": 4, "alpha": 16, **(lora or {})})
        options.setdefault("optimizer", partial(optimizer, lr=lr))
        return kind(BackboneConfig(**config, lora=lora), **options)

    return make


@pytest.fixture
def make_reward(make_module):
    """RewardModules on the tiny Llama, seeded, loaded: their heads are the same whatever is done before."""

    def make(**options):
        module = make_module(kind=RewardModule, **{"lr": 0.05, **options})
        module.configure_model()
        return module

    return make


def vowels(response):
    """Share of vowels in a response: a reward that a policy of any size can learn to please."""
    return sum(response.count(letter) for letter in "aeiou") / max(len(response), 1)


@pytest.fixture(scope="session")
def make_prompts(tiny_tokenizer):
    """Batches of ``size`` out of ``number`` ragged prompts."""

    def make(number, size):
        texts = ["What is it?", "Tell me", "Thank you very much, how many legs?", "A"]
        rows = [
            Prompt(tuple(tiny_tokenizer(text)["input_ids"]), text, (), {}, f"prompts.jsonl:{row + 1}", "prompts")
            for row, text in enumerate(f"{texts[row % 4]} {row}" for row in range(number))
        ]
        return [PromptBatch(tuple(rows[at : at + size]), {}) for at in range(0, number, size)]

    return make


@pytest.fixture
def make_policy(make_module, tiny_tokenizer):
    """Modules that learn from rollouts, on the tiny Llama; rewarded for vowels unless told otherwise."""

    def make(kind=PPOModule, rewards=None, sampling=None, lr=0.05, **options):
        rewards = rewards or [WeightedReward(FunctionReward(vowels))]
        sampling = SamplingOptions(**{"max_new_tokens": 9, **(sampling or {})})
        tokenizer = copy.deepcopy(tiny_tokenizer)
        return make_module(kind=kind, rewards=rewards, sampling=sampling, lr=lr, tokenizer=tokenizer, **options)

    return make


@pytest.fixture
def one_step_by_hand(make_policy, fit):
    """One iteration of a policy without a critic, by SGD, beside a loss that is computed slowly.

    ``loss_of`` gets, per response, log-probabilities (R,) of policy and reference from whole logits, and the scores.
    The weights after the step must be what it says. Returns what was logged, and the rows.
    """

    def run(kind, batch, loss_of, lr=0.2, **options):
        module = make_policy(kind, lr=lr, lora={"init": "gaussian"}, **options)
        module.configure_model()
        torch.manual_seed(3)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:  # the adapter leaves its beginning, so that nothing is zero by accident
                parameter.data.normal_(std=0.05)
        module.model.prepare()
        scored = module.iterations.collect(module.model, batch)
        module.iterations.means.reset()
        module.phases.report()
        rows = slow_logprobs(module, scored.rollouts)
        trained = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss_of(rows, scored), trained)
        expected = [p.detach() - lr * g for p, g in zip(trained, gradients, strict=True)]
        assert torch.cat([g.flatten() for g in gradients]).norm() > 1e-4
        trainer = fit(module, [batch])
        for parameter, wanted in zip(trained, expected, strict=True):
            torch.testing.assert_close(parameter.detach(), wanted, rtol=2e-4, atol=2e-6)
        return {name: trainer.logger.column(name)[0] for name in trainer.logger.rows[0] if name != "step"}, rows

    return run


def slow_logprobs(module, rollouts):
    """Log-probabilities of policy and reference, row by row, from whole logits."""
    found = []
    for prompt, tokens, mask in zip(rollouts.prompts, rollouts.tokens, rollouts.response_mask, strict=True):
        response, first = tokens[mask], len(prompt.tokens) - 1
        row = torch.cat([torch.tensor(prompt.tokens), response])[None]
        both = []
        for role in ("policy", "reference"):
            with module.model.role(role):
                logits = module.model.base(input_ids=row).logits[0, first:-1] / module.iterations.sampling.temperature
            both.append(log_softmax(logits, -1)[torch.arange(len(response)), response])
        found.append((both[0], both[1].detach()))
    return found


@pytest.fixture
def make_trainer(tmp_path):
    """Quiet Trainers on one CPU that log every step into a Memory."""

    def make(**options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1, "logger": Memory()}
        return lightning.Trainer(**{"default_root_dir": tmp_path, **quiet, **defaults, **options})

    return make


@pytest.fixture
def fit(make_trainer):
    """Trains a module on batches; returns the Trainer, whose logger remembers."""

    def run(module, batches, ckpt_path=None, validation=None, **options):
        trainer = make_trainer(**options)
        trainer.fit(module, loader(batches), validation and loader(validation), ckpt_path=ckpt_path)
        return trainer

    return run


def loader(batches):
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


@pytest.fixture(scope="session")
def make_loader():
    """A DataLoader over ready-made batches."""
    return loader


@pytest.fixture(scope="session")
def trained_weights():
    """Copies of what a module trains, by name."""
    return lambda module: {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


@pytest.fixture(scope="session")
def assert_same_run():
    """Whether two Trainers logged the same curves, and their modules ended with the same weights."""

    def compare(first, second, tolerance=2e-5):
        about_the_cut = {"train/tokens_per_second", "train/data/fill", "rollout/tokens_per_second"}
        about_the_cut |= {"time/rollout", "time/score", "time/update", "rollout/sampler_kl"}
        names = {name for row in second.logger.rows for name in row} - about_the_cut
        assert {name for row in first.logger.rows for name in row} - about_the_cut == names
        for name in names:
            ours, wanted = first.logger.column(name), second.logger.column(name)
            rounding = max(1e-7, tolerance * max(map(abs, wanted)))  # of sums of numbers about 1, which may cancel
            assert ours == pytest.approx(wanted, rel=tolerance, abs=rounding), name
        theirs = dict(second.lightning_module.named_parameters())
        for name, parameter in first.lightning_module.named_parameters():
            assert (parameter - theirs[name]).norm() <= 3 * tolerance * theirs[name].norm(), name

    return compare
