"""A checkpoint is one file whichever strategy wrote it, and whichever reads it, on any number of ranks."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file

from datamodules.packing import pack_pairs
from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.callbacks.checkpoints import StepCheckpoint
from lit_rlhf.callbacks.rank_watch import RankWatch
from lit_rlhf.checkpoints.folder import newest_valid
from lit_rlhf.checkpoints.plugin import SafeCheckpointIO
from lit_rlhf.models.options import ReferenceOptions
from lit_rlhf.models.whole import whole
from lit_rlhf.strategies.fsdp2 import FSDP2Strategy

STRATEGIES = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
    "shards": lambda: FSDP2Strategy(process_group_backend="gloo", sharded_checkpoints=True),
}
MOVING = ReferenceOptions(sync_steps=2, mixup=0.5)
KINDS = {
    "dpo": {"kind": DPOModule, "reference": MOVING},
    "dpo_full": {"kind": DPOModule, "reference": MOVING, "lora": {"enabled": False}},
    "reward": {"kind": RewardModule},
    "pissa": {"kind": DPOModule, "lora": {"init": "pissa"}},
}


@pytest.fixture
def half(make_module, make_pairs, fit, tmp_path):
    """Trains the first or the second half of a run, by one rank or by all; says what came of it and leaves files."""
    pairs = make_pairs(32)

    def run(rank, num_ranks, strategy, kind, checkpoint=None, folder=None):
        module = make_module(lr=2e-3, optimizer=torch.optim.AdamW, **KINDS[kind])
        module.configure_model()
        rows = pairs[16:] if checkpoint else pairs[:16]
        batches = [pack_pairs(rows[at : at + 4][rank::num_ranks], 10**6) for at in range(0, 16, 4)]
        options = {"max_epochs": 2 if checkpoint else 1, "plugins": [SafeCheckpointIO()], "gradient_clip_val": 0.5}
        if strategy:
            options |= {"strategy": STRATEGIES[strategy](), "devices": num_ranks, "use_distributed_sampler": False}
        trainer = fit(module, batches, ckpt_path=checkpoint, **options)
        if not checkpoint:
            trainer.save_checkpoint(folder / f"{strategy}.ckpt")
            module.model.save(folder / f"{strategy}")
        return {
            name: whole(p.detach()) for name, p in module.named_parameters() if p.requires_grad or "reference" in name
        }

    return run


@pytest.mark.parametrize(
    "kind", ["dpo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dpo_full", "reward"))]
)
def test_what_one_layout_wrote_another_goes_on_from(kind, half, on_ranks, tmp_path):
    half(0, 1, None, kind, None, tmp_path)
    on_ranks(half, 2, "fsdp2", kind, None, tmp_path)
    one, sharded = (SafeCheckpointIO().load_checkpoint(tmp_path / f"{name}.ckpt") for name in (None, "fsdp2"))
    assert set(sharded["state_dict"]) == set(one["state_dict"]), "the frozen base is left out"
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(sharded["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name, equal_nan=True)
    ours, theirs = (found["optimizer_states"][0]["state"] for found in (sharded, one))
    assert {n: {k: v.shape for k, v in s.items()} for n, s in ours.items()} == {
        n: {k: v.shape for k, v in s.items()} for n, s in theirs.items()
    }
    wanted = half(0, 1, None, kind, tmp_path / "None.ckpt")
    went_on = {
        "alone": half(0, 1, None, kind, tmp_path / "fsdp2.ckpt"),
        "sharded, from one": on_ranks(half, 2, "fsdp2", kind, tmp_path / "None.ckpt")[1],
        "sharded": on_ranks(half, 2, "fsdp2", kind, tmp_path / "fsdp2.ckpt")[0],
        "ddp": on_ranks(half, 2, "ddp", kind, tmp_path / "fsdp2.ckpt")[0],
        "sharded over one": on_ranks(half, 1, "fsdp2", kind, tmp_path / "fsdp2.ckpt", num_ranks=1)[0],
    }
    for layout, found in went_on.items():
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5, msg=f"{layout}: {name}")


@pytest.mark.parametrize("kind", ["dpo", pytest.param("dpo_full", marks=pytest.mark.slow)])
def test_a_checkpoint_in_shards_is_the_gathered_one(kind, half, on_ranks, tmp_path):
    on_ranks(half, 2, "fsdp2", kind, None, tmp_path)
    on_ranks(half, 2, "shards", kind, None, tmp_path)
    gathered, shards = (SafeCheckpointIO().load_checkpoint(tmp_path / f"{name}.ckpt") for name in ("fsdp2", "shards"))
    assert set(shards["state_dict"]) == set(gathered["state_dict"])
    for name, value in gathered["state_dict"].items():
        torch.testing.assert_close(shards["state_dict"][name], value, rtol=0, atol=0, msg=name, equal_nan=True)
    files = list((tmp_path / "shards").rglob("rank-*.ckpt"))
    assert sorted(file.name for file in files) == ["rank-0.ckpt", "rank-1.ckpt"]
    assert (tmp_path / "shards.ckpt").stat().st_size < 0.6 * (tmp_path / "fsdp2.ckpt").stat().st_size
    wanted = on_ranks(half, 2, "fsdp2", kind, tmp_path / "fsdp2.ckpt")[0]
    went_on = {
        "alone": half(0, 1, None, kind, tmp_path / "shards.ckpt"),
        "as it was": on_ranks(half, 2, "shards", kind, tmp_path / "shards.ckpt")[1],
        "copies": on_ranks(half, 2, "ddp", kind, tmp_path / "shards.ckpt")[0],
        "over one": on_ranks(half, 1, "fsdp2", kind, tmp_path / "shards.ckpt", num_ranks=1)[0],
        "over three": on_ranks(half, 3, "fsdp2", kind, tmp_path / "shards.ckpt", num_ranks=3)[2],
    }
    for layout, found in went_on.items():
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5, msg=f"{layout}: {name}")


@pytest.mark.parametrize(
    "kind", ["pissa", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "pissa")]
)
def test_adapters_and_models_are_written_whole(kind, half, on_ranks, tmp_path):
    half(0, 1, None, kind, None, tmp_path)
    on_ranks(half, 2, "fsdp2", kind, None, tmp_path)
    files = sorted(path.relative_to(tmp_path / "None") for path in (tmp_path / "None").rglob("*"))
    assert sorted(path.relative_to(tmp_path / "fsdp2") for path in (tmp_path / "fsdp2").rglob("*")) == files
    (weights,) = [file for file in files if file.suffix == ".safetensors"]
    one, sharded = (load_file(tmp_path / name / weights) for name in ("None", "fsdp2"))
    assert set(one) == set(sharded)
    for name, value in one.items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=1e-5, msg=name)


class Dies(Callback):
    """Kills its process in a step, as the kernel does where memory runs out."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("shards", marks=pytest.mark.slow)])
def test_a_run_goes_on_after_one_of_its_ranks_was_killed(strategy, make_module, make_pairs, fit, on_ranks, tmp_path):
    pairs = make_pairs(16)

    def train(rank, folder, step):
        module = make_module(lr=2e-3, optimizer=torch.optim.AdamW)
        batches = [pack_pairs(pairs[at : at + 4][rank::2], 10**6) for at in range(0, 16, 4)]
        dying = [Dies(step)] if step and rank == 1 else []
        callbacks = [StepCheckpoint(folder), RankWatch(2.0), *dying]
        found = newest_valid(folder).path
        options = {"strategy": STRATEGIES[strategy](), "devices": 2, "use_distributed_sampler": False}
        options |= {"plugins": [SafeCheckpointIO()], "callbacks": callbacks, "enable_checkpointing": True}
        trainer = fit(module, batches, ckpt_path=found, max_epochs=2, **options)
        weights = {name: whole(p.detach()) for name, p in module.named_parameters() if p.requires_grad}
        return {**weights, "began": 0 if found is None else 1, "steps": trainer.global_step}

    wanted = on_ranks(train, tmp_path / "undisturbed", 0)[0]
    with pytest.raises(AssertionError):  # one was killed, and the other one left
        on_ranks(train, tmp_path / "disturbed", 6)
    found = on_ranks(train, tmp_path / "disturbed", 0)[0]
    assert (found.pop("began"), wanted.pop("began")) == (1, 0)
    assert found.pop("steps") == wanted.pop("steps") == 8
    for name, value in wanted.items():
        assert found[name].equal(value), name
