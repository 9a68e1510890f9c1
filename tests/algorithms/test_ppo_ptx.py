"""PPO with a pretraining mix: its share in the loss by an independent slow computation, resumed, and on two ranks."""

from __future__ import annotations

import copy
import multiprocessing
import os
import socket
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.functional import cross_entropy

from datamodules import PromptAndTextDataModule, PromptDataModule, SFTDataModule
from datamodules.packing import TokenSequence, pack_sequences
from lit_rlhf.callbacks.checkpoints import IterationCheckpoint
from lit_rlhf.callbacks.random_state import RandomState
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.types import PromptAndTextBatch, PromptBatch

ROWS = [{"prompt": f"Question {n}: what is {n} and {n}?"} for n in range(10)]
TEXTS = [{"text": f"The sum of {n} and {n} is {n + n}."} for n in range(7)]
ONE_STEP = UpdateOptions(num_epochs=1, num_minibatches=1, max_grad_norm=0.0)
TWICE = UpdateOptions(num_epochs=2, num_minibatches=2, max_grad_norm=0.0)


def text(row):
    """A text whose first tokens are not trained."""
    tokens = [6 + (row * 31 + place * 7) % 300 for place in range(4 + row * 3 % 7)]
    return TokenSequence(tokens, [place > row % 3 for place in range(len(tokens))], f"texts:{row}", "texts")


def beside(prompts, texts, token_budget=10**6):
    return PromptAndTextBatch(prompts, pack_sequences(texts, token_budget))


def test_one_step_is_that_of_equation_2(make_policy, make_prompts, fit, trained_weights):
    """gradient of PPO + ptx_coef * gradient of the mean negative log-likelihood of a trained token; by SGD, without
    clipping, a step that has texts differs from one that has none by the latter alone."""
    (prompts,) = make_prompts(5, 5)
    texts, lr, ptx_coef = [text(row) for row in range(6)], 0.3, 0.7
    make = partial(make_policy, updates=ONE_STEP, lr=lr, lora={"init": "gaussian"})
    module = make()
    module.configure_model()
    module.model.prepare()
    base, trained = module.model.backbone.base, [p for p in module.model.parameters() if p.requires_grad]
    total, number = 0.0, 0
    with module.model.backbone.role("policy"):
        for sequence in texts:
            logits = base(input_ids=torch.tensor(sequence.tokens)[None]).logits[0]
            for place in range(1, len(sequence.tokens)):
                if sequence.scored[place]:
                    total = total + cross_entropy(logits[place - 1], torch.tensor(sequence.tokens[place]))
                    number += 1
    loss = total / number
    gradients = torch.autograd.grad(ptx_coef * loss, trained, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, gradients, strict=True)]
    assert torch.cat([gradient.flatten() for gradient in gradients]).norm() > 1e-2
    fit(module, [prompts])
    mixed = make(ptx_coef=ptx_coef)
    trainer = fit(mixed, [beside(prompts, texts, token_budget=12)])
    theirs = trained_weights(mixed)
    for (name, plain), gradient in zip(trained_weights(module).items(), gradients, strict=True):
        torch.testing.assert_close(theirs[name], plain - lr * gradient, rtol=2e-4, atol=2e-6, msg=name)
    assert trainer.logger.column("train/ptx_loss") == [pytest.approx(float(loss), rel=1e-5)]


def test_every_minibatch_has_its_share_whatever_the_cut(make_policy, make_prompts, fit, assert_same_run):
    """The token budget of the texts changes no number, though micro-batches are fewer than minibatches."""
    prompts, texts = make_prompts(8, 4), [text(row) for row in range(8)]
    runs = []
    for budget in (1, 10**6):
        module = make_policy(updates=TWICE, ptx_coef=0.5, lr=1e-2, critic=CriticOptions(lr_factor=1.0))
        seen = []
        module._text_losses = counting(module._text_losses, seen)
        runs.append(fit(module, [beside(batch, texts, budget) for batch in prompts]))
        assert len(seen) == 2 * 2 * 2 * (4 if budget == 1 else 1)
    assert_same_run(*runs, tolerance=2e-5)


def counting(plain, seen):
    def call(texts):
        seen.append(texts)
        return plain(texts)

    return call


def test_a_coefficient_of_nought_changes_nothing_and_says_so(make_policy, make_prompts, fit, trained_weights):
    prompts = make_prompts(8, 4)
    alone = make_policy(updates=TWICE, lr=1e-2)
    fit(alone, prompts)
    mixed = make_policy(updates=TWICE, lr=1e-2)
    with pytest.warns(UserWarning, match="ptx_coef is 0: the texts beside the prompts are read and not learnt from"):
        trainer = fit(mixed, [beside(batch, [text(0)]) for batch in prompts])
    theirs = trained_weights(mixed)
    assert all(torch.equal(theirs[name], weights) for name, weights in trained_weights(alone).items())
    assert trainer.logger.column("train/ptx_loss") == []


def test_settings_that_contradict_each_other_are_refused(make_policy, make_prompts, fit):
    with pytest.raises(ValueError, match=r"ptx_coef is 0\.1, but the data have no texts to imitate"):
        fit(make_policy(ptx_coef=0.1), make_prompts(4, 4))
    with pytest.raises(ValueError, match=r"ptx_coef is -1\.0; it is not negative"):
        make_policy(ptx_coef=-1.0)


def test_a_step_without_texts_is_one_of_ppo_alone(make_policy, make_prompts, fit, trained_weights):
    """All rows of the texts' batch may have been dropped."""
    prompts = make_prompts(8, 4)
    alone = make_policy(updates=TWICE, lr=1e-2)
    fit(alone, prompts)
    mixed = make_policy(updates=TWICE, lr=1e-2, ptx_coef=0.5)
    fit(mixed, [beside(batch, []) for batch in prompts])
    theirs = trained_weights(mixed)
    assert all(torch.equal(theirs[name], weights) for name, weights in trained_weights(alone).items())


def test_only_the_critic_learns_while_it_warms_up(make_policy, make_prompts, fit, trained_weights):
    module = make_policy(critic=CriticOptions(warmup_iterations=2), updates=TWICE, lr=1e-3, ptx_coef=0.5)
    module.configure_model()
    before = trained_weights(module)
    fit(module, [beside(batch, [text(0), text(1)]) for batch in make_prompts(8, 4)])
    moved = {name for name, weights in trained_weights(module).items() if not torch.equal(weights, before[name])}
    assert moved
    assert all("critic" in name or "v_head" in name for name in moved)


def train(make_policy, make_trainer, tokenizer, folder, ckpt_path=None):
    """Three epochs of three iterations, over two and a half epochs of the texts."""
    both = {"tokenizer": copy.deepcopy(tokenizer), "shuffle_buffer": 5}
    data = PromptAndTextDataModule(
        PromptDataModule(train=ROWS, validation=ROWS[:3], batch_size=4, **both),
        SFTDataModule(train=TEXTS, batch_size=2, **both),
    )
    module = make_policy(updates=TWICE, optimizer=torch.optim.AdamW, lr=5e-3, ptx_coef=0.5)
    saver = IterationCheckpoint(folder, every_n_iterations=1, save_top_k=-1)
    options = {"enable_checkpointing": True, "max_epochs": 3, "default_root_dir": folder}
    trainer = make_trainer(callbacks=[saver, RandomState()], **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


def test_resumed_equals_unbroken(make_policy, make_trainer, tiny_tokenizer, tmp_path):
    """In the middle of epochs of both, and at the end of the texts'; to the bit."""
    run = partial(train, make_policy, make_trainer, tiny_tokenizer)
    whole, unbroken = run(tmp_path / "whole")
    wanted = {name: value.clone() for name, value in whole.state_dict().items()}
    assert len(unbroken.logger.column("train/ptx_loss")) == 9
    for stop in (2, 4):
        again, resumed = run(tmp_path / f"resumed{stop}", ckpt_path=tmp_path / "whole" / f"iteration-{stop}.ckpt")
        for name, value in again.state_dict().items():
            if not name.startswith("iterations.means"):
                torch.testing.assert_close(value, wanted[name], rtol=0, atol=0, equal_nan=True, msg=name)
        for name in ("train/ptx_loss", "rollout/score", "train/grad_norm"):
            assert resumed.logger.column(name) == unbroken.logger.column(name)[stop:], name


# Prompts and texts that rank 0 has of each iteration; the rest is rank 1's. In the second iteration rank 1 has no
# prompts, in the third rank 0 has no texts.
SHARES = ((3, 2), (4, 1), (1, 0))
NUM_PROMPTS, NUM_TEXTS = 4, 5


def shares_of(rank, prompts):
    """The batches of a rank; of rank None, those of both together."""
    for number, (batch, ends) in enumerate(zip(prompts, SHARES, strict=True)):
        parts = (
            (slice(None), slice(None)) if rank is None else [slice(rank * end, None if rank else end) for end in ends]
        )
        texts = [text(NUM_TEXTS * number + row) for row in range(NUM_TEXTS)]
        yield beside(PromptBatch(batch.prompts[parts[0]], {}), texts[parts[1]], 10**6 if rank is None else 12)


def recipe(make_policy):
    return make_policy(updates=TWICE, lr=2e-3, ptx_coef=0.5, critic=CriticOptions(lr_factor=1.0))


def run_rank(rank, port, folder, make_policy, prompts, fit):
    torch.set_num_threads(1)
    ours = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in ours.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    module = recipe(make_policy)
    strategy = DDPStrategy(process_group_backend="gloo")
    options = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False}
    trainer = fit(module, list(shares_of(rank, prompts)), **options)
    state = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    torch.save({"ptx_loss": trainer.logger.column("train/ptx_loss"), "state": state}, folder / f"rank{rank}.pt")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_ranks_equal_one(make_policy, make_prompts, fit, trained_weights, tmp_path):
    prompts = make_prompts(NUM_PROMPTS * len(SHARES), NUM_PROMPTS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = (port, tmp_path, make_policy, prompts, fit)
    processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
        assert process.exitcode == 0
    module = recipe(make_policy)
    trainer = fit(module, list(shares_of(None, prompts)))
    whole = trained_weights(module)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, value in whole.items():
            torch.testing.assert_close(found["state"][name], value, rtol=2e-4, atol=2e-6, msg=name)
    assert found["ptx_loss"] == pytest.approx(trainer.logger.column("train/ptx_loss"), rel=1e-4)


def test_no_warning_where_all_is_well(make_policy, make_prompts, fit):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ptx_coef")
        fit(make_policy(updates=ONE_STEP, ptx_coef=0.5), [beside(make_prompts(4, 4)[0], [text(0)])])
