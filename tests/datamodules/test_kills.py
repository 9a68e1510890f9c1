"""A run that is killed at any moment and begun again sees the rows that were left, and ends with the same weights."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import socket
import time
from collections import Counter
from itertools import chain

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from datamodules import SFTDataModule, Source
from lit_rlhf.callbacks.random_state import RandomState

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
pytestmark = pytest.mark.skipif(FORK is None, reason="needs fork")

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
KILLS = int(os.environ.get("KILLS", "3"))
ROWS = [{"prompt": f"What is {n}?", "completion": f" It is {n}{' and no more' * (n % 4)}."} for n in range(60)]
OTHERS = [{"instruction": f"Say {n}.", "output": f"{n}" * (1 + n % 5)} for n in range(30)]
OTHERS[7]["output"] = ""
NUM_STEPS = 48  # 60 rows one and a half times, and 30 once, in steps of 5, twice


class Tiny(lightning.LightningModule):
    """A bigram model with dropout, which notes the rows of every step in a file."""

    def __init__(self, log=None, pause=0.0):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(400, 8), torch.nn.Linear(8, 400)
        self.log_file, self.pause, self.steps = log, pause, []

    def training_step(self, batch, batch_idx):
        time.sleep(self.pause)
        losses = []
        for part in batch.micro_batches:
            hidden = torch.nn.functional.dropout(self.table(part.forest.tokens[part.forest.predictors]), 0.3)
            losses.append(torch.nn.functional.cross_entropy(self.head(hidden), part.forest.tokens[part.forest.targets]))
        self.steps.append([row for part in batch.micro_batches for row in part.rows])
        if self.log_file is not None:
            with self.log_file.open("a") as log:
                log.write(json.dumps([self.global_step, self.steps[-1], sorted(batch.notes.items())]) + "\n")
        return sum(losses)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.fixture
def make_data(tiny_tokenizer, write_rows):
    write_rows("lines.jsonl", ROWS)
    write_rows("groups.parquet", OTHERS)

    def make(**options):
        sources = [Source("lines.jsonl", weight=1.5), Source("groups.parquet", name="others")]
        defaults = {"batch_size": 5, "token_budget": 60, "shuffle_buffer": 16, "on_bad_row": "drop"}
        return SFTDataModule(train=sources, tokenizer=copy.deepcopy(tiny_tokenizer), **{**defaults, **options})

    return make


def newest(folder):
    """The checkpoint of the last step that was saved, if one was."""
    return max(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")), default=None)


def train(folder, make_data, num_workers, pause=0.0, **options):
    """Train to the end, from the newest checkpoint on."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, module = make_data(num_workers=num_workers), Tiny(folder / "steps.jsonl", pause)
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    defaults = {"max_epochs": 2, "callbacks": [saver, RandomState()], "default_root_dir": folder}
    trainer = lightning.Trainer(**QUIET, **{**defaults, **options})
    trainer.fit(module, data, ckpt_path=newest(folder))
    torch.save([module.state_dict(), data.summary()], folder / "done.pt")


def history(folder):
    """What each step saw: rows and notes. A step that was cut off is done again, and must see the same."""
    steps = {}
    for line in (folder / "steps.jsonl").read_text().splitlines():
        step, *seen = json.loads(line)
        assert steps.setdefault(step, seen) == seen
    return [steps[step] for step in sorted(steps)]


def kill_at_any_moment(folder, make_data, num_workers, rng):
    """Begin a run, and kill it once it has done some steps; says whether it had come to its end."""
    done, log = 0, folder / "steps.jsonl"
    begun = log.read_text().count("\n") if log.exists() else 0
    process = FORK.Process(target=train, args=(folder, make_data, num_workers, 0.01))
    process.start()
    wanted = rng.randrange(1, 12)
    while process.is_alive() and done < wanted:
        time.sleep(0.001)
        done = (log.read_text().count("\n") if log.exists() else 0) - begun
    time.sleep(rng.random() * 0.03)
    process.kill()
    process.join()


@pytest.mark.parametrize("seed", range(-(-KILLS // 3)))
def test_killed_at_random_moments(tmp_path, make_data, seed):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    train(whole, make_data, 0)
    rng = random.Random(seed)
    for kill in range(3):
        kill_at_any_moment(broken, make_data, (2, 0, 3)[kill % 3], rng)
    assert not (broken / "done.pt").exists()
    train(broken, make_data, 2)
    assert history(broken) == history(whole)
    assert len(history(whole)) == NUM_STEPS
    epochs = [
        Counter(chain.from_iterable(rows for rows, _ in part)) for part in (history(whole)[:24], history(whole)[24:])
    ]
    for epoch in epochs:
        others = {row: count for row, count in epoch.items() if row.startswith("groups")}
        assert others == {f"groups.parquet:{number}": 1 for number in range(1, 31) if number != 8}
        assert sorted(Counter(epoch.values())) == [1, 2]
    (ours, counts), (wanted, wanted_counts) = (torch.load(one / "done.pt") for one in (broken, whole))
    assert counts == wanted_counts
    assert counts["dropped/empty_response/others"] == 2
    assert all(torch.equal(ours[name], weight) for name, weight in wanted.items())


def run_rank(rank, world_size, port, folder, make_data, stop_at, ckpt_path):
    """Train as one of several processes, and note the rows of each step and all counts."""
    torch.set_num_threads(1)
    ours = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in ours.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    strategy = DDPStrategy(process_group_backend="gloo") if world_size > 1 else "auto"
    options = {"devices": world_size, "strategy": strategy, "use_distributed_sampler": False, "max_steps": stop_at}
    trainer = lightning.Trainer(**QUIET, **options, enable_checkpointing=False, default_root_dir=folder)
    module, data = Tiny(), make_data()
    trainer.fit(module, data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"{stop_at}.ckpt")
    state = data.state_dict()
    (folder / f"{stop_at}.{rank}.json").write_text(json.dumps([module.steps, state["cursor"], state["counts"]]))


def run_ranks(world_size, folder, make_data, stop_at, ckpt_path=None):
    """Train in several processes.

    Returns:
        The rows of each step over all of them, the cursor and the counts at the end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (world_size, port, folder, make_data, stop_at, ckpt_path)
    processes = [FORK.Process(target=run_rank, args=(rank, *arguments)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * world_size
    seen = [json.loads((folder / f"{stop_at}.{rank}.json").read_text()) for rank in range(world_size)]
    steps = [sorted(chain.from_iterable(parts)) for parts in zip(*(steps for steps, *_ in seen), strict=True)]
    assert all(rest == seen[0][1:] for _, *rest in seen)
    return steps, *seen[0][1:]


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_ranks_goes_on(tmp_path, make_data, worlds):
    whole, *end = run_ranks(1, tmp_path, make_data, 30)
    before, *_ = run_ranks(worlds[0], tmp_path, make_data, 17)
    after, *end_after = run_ranks(worlds[1], tmp_path, make_data, 30, tmp_path / "17.ckpt")
    assert before + after == whole
    assert (len(before), len(after)) == (17, 13)  # the first epoch ends after 24 steps
    assert [end_after[0], shown(end_after[1])] == [end[0], shown(end[1])]


def shown(counts):
    """Counts of rows; how the micro-batches are filled depends on the number of ranks."""
    return {name: count for name, count in counts.items() if name not in ("tokens", "room")}
