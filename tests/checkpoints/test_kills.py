"""A run of the command line that is killed by SIGKILL at random moments, and begun again by the same words each time.

It ends with the weights of a run that was left alone, to the bit: in the start, in a step, in a validation, in a
rollout, while it writes a checkpoint, wherever it was.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lightning.pytorch.trainer import call
from safetensors.torch import load_file

from lit_rlhf.callbacks.plots import Plots
from lit_rlhf.checkpoints.plugin import SafeCheckpointIO
from lit_rlhf.cli import main
from lit_rlhf.metrics.phases import Phases

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
pytestmark = pytest.mark.skipif(FORK is None, reason="needs fork")

CONFIGS = Path(__file__).parents[2] / "configs"
PLACES = ("start", "step", "validation", "rollout", "score", "update", "checkpoint")
HOOKS = {"on_train_batch_start": "step", "on_validation_start": "validation", "on_validation_end": "step"}
SMALL = (
    "--data.batch_size=4",
    "--trainer.val_check_interval=3",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--ckpt_path=auto",
)
EVERY_STEP = (
    "--trainer.callbacks=lit_rlhf.callbacks.checkpoints.StepCheckpoint",
    "--trainer.callbacks.minutes=0",
    "--trainer.max_steps=6",
)
RUNS = {
    "sft": EVERY_STEP,
    "dpo": (*EVERY_STEP, "--model.backbone.lora.dropout=0.1"),
    "reward": EVERY_STEP,
    "ppo": (
        "--model.sampling.max_new_tokens=6",
        "--model.updates.num_epochs=2",
        "--trainer.limit_train_batches=5",
        "--trainer.max_epochs=1",
    ),
}


class Run:
    """One run, started as often as need be.

    Args:
        name: of its configuration.
        folder: of the run.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.words = ["fit", "--config", str(CONFIGS / f"{name}.yaml"), *SMALL, *RUNS[name]]
        self.words += [f"--trainer.default_root_dir={folder}"]
        self.name = name
        self.folder = folder

    def start(self, place: str = "", times: int = 0, delay: float = 0.0) -> bool:
        """Start it, and kill it once it has come to a place so many times, a moment later.

        Returns:
            Whether it came to its end.
        """
        visits = FORK.Array("i", len(PLACES))
        process = FORK.Process(target=_train, args=(self.words, visits, self.folder.with_suffix(".log")))
        process.start()
        while process.is_alive() and not (place and visits[PLACES.index(place)] >= times):
            time.sleep(0.001)
        time.sleep(delay)
        process.kill() if place else process.join()
        process.join()
        assert process.exitcode in (0, -9), self.folder.with_suffix(".log").read_text()[-3000:]
        return process.exitcode == 0

    def start_until_done(self, num_kills: int, rng: random.Random) -> list[str]:
        """Kill it so many times; the places at which that happened."""
        places = places_of(self.name)
        killed: list[str] = []
        rng.shuffle(places)
        for number in range(num_kills):
            place = places[number % len(places)]
            if self.start(place, rng.randrange(1, 4 if place in ("step", "checkpoint") else 2), rng.random() * 0.02):
                break
            killed.append(place)
        assert self.start()
        return killed

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """All that it left as weights."""
        files = sorted(self.folder.glob("*.safetensors"))
        return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def places_of(name: str) -> list[str]:
    """Where a run can be killed."""
    return [place for place in PLACES if name == "ppo" or place not in ("rollout", "score", "update")]


def _train(words: list[str], visits, log: Path) -> None:
    """Run the command in this process, and tell where it is."""
    log.parent.mkdir(exist_ok=True)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)

    def visit(place: str) -> None:
        visits[PLACES.index(place)] += 1

    hooks, phase, save = call._call_callback_hooks, Phases.__call__, SafeCheckpointIO.save_checkpoint

    def call_hooks(trainer, name, *args, **kwargs):
        if name in HOOKS and not trainer.sanity_checking:
            visit(HOOKS[name])
        return hooks(trainer, name, *args, **kwargs)

    @contextmanager
    def call_phase(self, name: str) -> Iterator[None]:
        with phase(self, name):
            visit(name)
            yield

    def call_save(*args, **kwargs):
        visit("checkpoint")
        save(*args, **kwargs)

    Plots.draw = lambda *_: None  # half of all the time
    call._call_callback_hooks, Phases.__call__, SafeCheckpointIO.save_checkpoint = call_hooks, call_phase, call_save
    visit("start")
    main(words)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """What a run imports, so that each start does not have to: a fork has it already."""
    for name in (*(f"lit_rlhf.algorithms.{name}" for name in RUNS), "lit_rlhf.commands.training", "lit_rlhf.rewards"):
        import_module(name)
    for name in ("datamodules.preference", "datamodules.prompt", "datamodules.sft"):
        import_module(name)
    import_module("transformers.models.llama.modeling_llama")


def compare(name: str, folder: Path, num_kills: int, seed: int) -> list[str]:
    whole, broken = Run(name, folder / f"{name}-whole"), Run(name, folder / f"{name}-broken")
    assert whole.start()
    killed = broken.start_until_done(num_kills, random.Random(seed))
    assert whole.weights.keys() == broken.weights.keys() != set()
    assert [key for key, value in whole.weights.items() if not torch.equal(value, broken.weights[key])] == []
    return killed


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("dpo", "ppo") else pytest.mark.slow) for name in RUNS]
)
def test_killed_twice(tmp_path, name):
    assert len(compare(name, tmp_path, 2, seed=0)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_many_times(tmp_path, name):
    killed, seed = [], 1
    while len(killed) < 20:
        killed += compare(name, tmp_path / str(seed), 8, seed)
        seed += 1
    assert set(killed) == set(places_of(name))
