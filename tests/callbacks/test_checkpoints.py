"""Checkpoints after validations, every few minutes, and between iterations."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.callbacks.bands import Band, Limit
from lit_rlhf.callbacks.checkpoints import IterationCheckpoint, StepCheckpoint
from lit_rlhf.callbacks.health import HealthBands
from lit_rlhf.callbacks.random_state import RandomState

NUM = 3
"""Iterations of an epoch; the runs here have two epochs."""


def go(iterate, module, folder, *callbacks, ckpt_path=None, max_epochs=2, **options):
    validating = options.pop("limit_val_batches", 0)
    keep = IterationCheckpoint(folder, **options)
    settings = {"enable_checkpointing": True, "limit_val_batches": validating, "max_epochs": max_epochs}
    iterate(module, RandomState(), *callbacks, keep, num=NUM, ckpt_path=ckpt_path, **settings)
    return keep


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def whole(iterate, rollouts, tmp_path):
    """The weights at the end of an unbroken run, which leaves a checkpoint of each iteration."""
    torch.manual_seed(0)
    module = rollouts()
    go(iterate, module, tmp_path / "all", save_top_k=-1)
    return module.weight.detach()


@pytest.mark.parametrize("done", range(1, 2 * NUM))
def test_a_run_goes_on_from_every_iteration_as_if_nothing_had_happened(done, whole, iterate, rollouts, tmp_path):
    torch.manual_seed(99)
    module = rollouts()
    go(iterate, module, tmp_path / "again", ckpt_path=tmp_path / "all" / f"iteration-{done}.ckpt", save_top_k=-1)
    assert module.iterations == list(range(done, 2 * NUM))
    assert torch.equal(module.weight, whole)
    assert names(tmp_path / "again") == [*(f"iteration-{n}.ckpt" for n in range(done + 1, 2 * NUM + 1)), "last.ckpt"]


@pytest.mark.parametrize("fails_at", range(1, 2 * NUM))
def test_last_is_where_a_killed_run_was(fails_at, whole, iterate, rollouts, tmp_path):
    class Killed(rollouts):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            if self.iterations[-1] == fails_at:
                raise KeyError

    folder = tmp_path / "killed"
    torch.manual_seed(0)
    with pytest.raises(KeyError):
        go(iterate, Killed(), folder)
    assert names(folder) == [f"iteration-{fails_at}.ckpt", "last.ckpt"]
    module = rollouts()
    go(iterate, module, folder, ckpt_path="last")
    assert module.iterations == list(range(fails_at, 2 * NUM))
    assert torch.equal(module.weight, whole)


def test_a_validation_is_kept_with_what_it_measured(iterate, rollouts, tmp_path, whole):
    folder = tmp_path / "best"
    torch.manual_seed(0)
    go(iterate, rollouts(), folder, monitor="val/score", limit_val_batches=1, max_epochs=1)
    assert names(folder) == ["iteration-3.ckpt", "last.ckpt"], "val/score is known after the third iteration only"
    module = rollouts()
    go(iterate, module, folder, ckpt_path="last", monitor="val/score", limit_val_batches=1)
    assert module.iterations == [3, 4, 5]
    assert torch.equal(module.weight, whole)


def test_the_best_ones(iterate, rollouts, tmp_path):
    logged = [{"rollout/score": score} for score in (1.0, 5.0, 2.0, 4.0, 3.0, 0.0)]
    keep = go(iterate, rollouts(logged), tmp_path / "best", monitor="rollout/score", save_top_k=2)
    assert names(tmp_path / "best") == ["iteration-2.ckpt", "iteration-4.ckpt", "last.ckpt"]
    assert keep.best_model_path.endswith("iteration-2.ckpt")


def test_every_so_many_iterations_and_the_last_ones(iterate, rollouts, tmp_path):
    go(iterate, rollouts(), tmp_path / "some", every_n_iterations=2, save_top_k=-1)
    assert names(tmp_path / "some") == [*(f"iteration-{n}.ckpt" for n in (2, 3, 4, 6)), "last.ckpt"]
    with pytest.raises(ValueError, match="every_n_iterations is 0"):
        IterationCheckpoint(every_n_iterations=0)


def test_an_iteration_without_an_optimizer_step_is_saved_too(iterate, rollouts, tmp_path):
    class Cut(rollouts):
        def training_step(self, batch, batch_idx):
            self.iterations.append(batch_idx)

    go(iterate, Cut(), tmp_path / "cut", save_top_k=-1, max_epochs=1)
    assert names(tmp_path / "cut") == ["iteration-1.ckpt", "iteration-2.ckpt", "iteration-3.ckpt", "last.ckpt"]


def test_the_numbered_state_is_the_newest_healthy_one(iterate, rollouts, tmp_path):
    logged = [{"rollout/kl": kl} for kl in (1.0, 1.0, 9.0, 9.0, 9.0, 9.0)]
    bands = HealthBands([Band("kl", [Limit("rollout/kl", above=5.0)], "lower it", patience=2)])
    go(iterate, rollouts(logged), tmp_path / "ill", bands)
    assert names(tmp_path / "ill") == ["iteration-2.ckpt", "last.ckpt"]
    state = torch.load(tmp_path / "ill" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 12


def test_a_band_that_was_left_is_ill_until_it_holds_again(iterate, rollouts, tmp_path):
    logged = [{"rollout/kl": kl} for kl in (1.0, 1.0, 9.0, 9.0, 1.0, 9.0)]
    bands = HealthBands([Band("kl", [Limit("rollout/kl", above=5.0)], "lower it", patience=2)])
    go(iterate, rollouts(logged), tmp_path / "ill", bands)
    assert names(tmp_path / "ill") == ["iteration-2.ckpt", "last.ckpt"]


def test_a_held_out_metric_is_not_looked_at_before_it_is_measured_again(iterate, rollouts, tmp_path):
    options = {"monitor": "val/score", "limit_val_batches": 1, "save_top_k": -1}
    go(iterate, rollouts(), tmp_path / "all", **options)
    assert names(tmp_path / "all") == ["iteration-3.ckpt", "iteration-6.ckpt", "last.ckpt"]


def test_nothing_is_saved_before_training_nor_in_a_dry_run(iterate, rollouts, tmp_path):
    class Early(rollouts):
        def training_step(self, batch, batch_idx):
            raise KeyError

    keep = IterationCheckpoint(tmp_path / "none")
    options = {"limit_val_batches": 1, "num_sanity_val_steps": 1, "enable_checkpointing": True}
    with pytest.raises(KeyError):
        iterate(Early(), keep, **options)
    iterate(rollouts(), keep, fast_dev_run=True, **options)
    assert not (tmp_path / "none").exists()


def test_a_second_run_in_the_same_folder_takes_over_its_last(iterate, rollouts, tmp_path):
    for _ in range(2):
        go(iterate, rollouts(), tmp_path / "two", save_top_k=0)
    assert names(tmp_path / "two") == ["last.ckpt"]


def test_a_run_that_reaches_its_last_step_is_saved(iterate, rollouts, tmp_path):
    keep = IterationCheckpoint(tmp_path / "steps", every_n_iterations=5)
    iterate(rollouts(), keep, num=4, max_steps=4, enable_checkpointing=True)
    assert names(tmp_path / "steps") == ["iteration-2.ckpt", "last.ckpt"]


def test_a_run_that_is_stopped_is_saved(iterate, rollouts, tmp_path, whole):
    logged = [{"rollout/kl": 9.0}] * 6
    bands = HealthBands([Band("kl", [Limit("rollout/kl", above=5.0)], "lower it", patience=1)], action="stop")
    torch.manual_seed(0)
    go(iterate, rollouts(logged), tmp_path / "ill", bands, every_n_iterations=5)
    assert names(tmp_path / "ill") == ["last.ckpt"]
    module = rollouts()
    go(iterate, module, tmp_path / "ill", ckpt_path="last")
    assert module.iterations == [1, 2, 3, 4, 5]
    assert torch.equal(module.weight, whole)


@pytest.mark.parametrize(
    ("options", "settings", "found"),
    [
        ({"minutes": 0, "save_top_k": 0}, {"limit_val_batches": 0}, [1, 2, 3, 4, 5, 6]),
        ({"minutes": 0, "save_top_k": 0}, {}, [1, 2, 3, 4, 5, 6]),
        ({"minutes": 9, "save_top_k": 0}, {"limit_val_batches": 0}, [3, 6]),
        ({"minutes": 9, "save_top_k": 0}, {"val_check_interval": 2, "check_val_every_n_epoch": None}, [2, 3, 4, 6]),
        ({"minutes": 9, "save_top_k": 0}, {"val_check_interval": 2, "max_steps": 5, "max_epochs": None}, [2, 3, 5]),
        ({"minutes": 0, "save_top_k": 0}, {"accumulate_grad_batches": 2, "limit_val_batches": 0}, [1, 2, 3, 4]),
    ],
)
def test_last_is_saved_in_time_and_at_each_end(train, policy, tmp_path, monkeypatch, options, settings, found):
    saved = []
    keep = StepCheckpoint(tmp_path / "kept", **options)
    plain = keep._save_checkpoint
    monkeypatch.setattr(
        keep, "_save_checkpoint", lambda trainer, path: (saved.append(trainer.global_step), plain(trainer, path))
    )
    train(policy(), keep, enable_checkpointing=True, **{"max_epochs": 2, **settings})
    assert list(dict.fromkeys(saved)) == found
    assert names(tmp_path / "kept") == ["last.ckpt"]
    assert torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["global_step"] == found[-1]


def test_numbered_steps_are_those_of_validations_and_ends(train, policy, tmp_path):
    keep = StepCheckpoint(tmp_path / "kept", minutes=0, save_top_k=-1)
    train(policy(), keep, enable_checkpointing=True, val_check_interval=2, check_val_every_n_epoch=None, max_epochs=2)
    assert names(tmp_path / "kept") == ["last.ckpt", *(f"step-{step}.ckpt" for step in (2, 3, 4, 6))]
    with pytest.raises(ValueError, match="minutes is -1"):
        StepCheckpoint(minutes=-1)
