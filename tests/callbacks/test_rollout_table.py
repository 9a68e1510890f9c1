"""Responses with their scores at every evaluation."""

from __future__ import annotations

import json
import multiprocessing
import socket
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from lit_rlhf.callbacks.checkpoints import IterationCheckpoint
from lit_rlhf.callbacks.rollout_table import FILE, RolloutTable

OPTIONS = {"limit_val_batches": 1.0, "num_sanity_val_steps": -1}


def rows_of(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().split("\n")[:-1]]


def test_every_response_of_every_evaluation(iterate, rollouts, tmp_path):
    iterate(rollouts(), RolloutTable(), max_epochs=2, **OPTIONS)
    rows = rows_of(tmp_path)
    assert [(row["step"], row["iteration"]) for row in rows[::3]] == [(0, 0), (6, 3), (12, 6)]
    assert rows[3] == {
        "step": 6,
        "iteration": 3,
        "prompt": "What is the capital of France?",
        "response": "answer 3",
        "score": 3.5,
        "rewards": {"kind": 1.0},
        "kl": 0.75,
        "length": 7,
        "finished": True,
    }


def test_the_screen(iterate, rollouts, capsys):
    iterate(rollouts(), RolloutTable(num_prompts=2), max_epochs=2, **OPTIONS)
    out = capsys.readouterr().out
    for shown in ("(iteration 0)", "(iteration 3)", "(iteration 6)", "before (iteration 0)", "after (iteration 6)"):
        assert shown in out
    assert "Tell me a story." in out
    assert "Thank you" not in out, "two prompts only"
    last = out[out.index("before (iteration 0)") :]
    assert "[0.5] answer 0" in last
    assert "[6.5] answer 6" in last


def test_only_the_end_is_shown_where_asked_for(iterate, rollouts, capsys):
    iterate(rollouts(), RolloutTable(every_evaluation=False), **OPTIONS)
    out = capsys.readouterr().out
    assert out.count("Answers to held-out prompts") == 1
    assert "before (iteration 0)" in out


def test_one_evaluation_has_no_before_and_after(iterate, rollouts, capsys):
    iterate(rollouts(), RolloutTable(), limit_val_batches=1)
    assert "before" not in capsys.readouterr().out


def test_one_response_per_prompt_is_shown():
    rows = [{"prompt": prompt, "response": str(number)} for number, prompt in enumerate("aabbcc")]
    assert [row["response"] for row in RolloutTable(num_prompts=2)._first(rows)] == ["0", "2"]


@pytest.mark.parametrize("fails_at", [1, 3, 4])
def test_a_resumed_run_writes_every_row_once_and_keeps_its_beginning(fails_at, iterate, rollouts, tmp_path):
    class Odd(rollouts):
        def validation_step(self, batch, batch_idx):
            return [{**row, "response": "a line\u2028and another"} for row in super().validation_step(batch, batch_idx)]

    class Killed(Odd):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            if self.iterations[-1] == fails_at:
                raise KeyError

    def callbacks():
        return RolloutTable(), IterationCheckpoint(tmp_path / "checkpoints")

    options = {**OPTIONS, "max_epochs": 2, "enable_checkpointing": True}
    with pytest.raises(KeyError):
        iterate(Killed(), *callbacks(), **options)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"iteration": 3, "pro')  # killed while it wrote
    table, keep = callbacks()
    iterate(Odd(), table, keep, ckpt_path="last", **options)
    assert [row["iteration"] for row in rows_of(tmp_path)[::3]] == [0, 3, 6]
    assert [when for when, _ in table.shown] == ["iteration 0", "iteration 6"]


def test_rows_of_another_run_are_not_kept(iterate, rollouts, tmp_path):
    (tmp_path / FILE).write_text('{"step": 0, "prompt": "old"}\n{"iteration": 2, "prompt": "old"}\n')
    iterate(rollouts(), RolloutTable(), **OPTIONS)
    assert all(row["prompt"] != "old" for row in rows_of(tmp_path))


def test_an_evaluation_that_broke_off_leaves_no_rows(iterate, rollouts, tmp_path):
    class Broken(rollouts):
        def validation_step(self, batch, batch_idx):
            return super().validation_step(batch, batch_idx) if batch_idx == 0 else {}["no such prompt"]

    table = RolloutTable()
    with pytest.raises(KeyError):
        iterate(Broken(), table, **OPTIONS)
    iterate(rollouts(), table, limit_val_batches=1.0)
    assert len(rows_of(tmp_path)) == 3


def test_a_dry_run_writes_nothing(iterate, rollouts, tmp_path):
    iterate(rollouts(), RolloutTable(), fast_dev_run=True, **OPTIONS)
    assert not (tmp_path / FILE).exists()


def test_outside_of_training_nothing_is_written(iterate, rollouts, tmp_path):
    module = rollouts()
    trainer = iterate(module, RolloutTable())
    trainer.validate(module, DataLoader([["Say hello"]], batch_size=None))
    assert not (tmp_path / FILE).exists()


def test_prompts_that_were_not_answered_again_have_no_after(capsys):
    table = RolloutTable()
    rows = [{"prompt": prompt, "response": "", "score": 0.0} for prompt in ("first prompt", "second prompt")]
    table.shown = [("iteration 0", rows), ("iteration 9", rows[1:])]
    table.on_train_end(MagicMock(), MagicMock())
    out = capsys.readouterr().out
    assert "second prompt" in out
    assert "first prompt" not in out


def test_modules_without_responses_are_passed_over(train, policy, tmp_path):
    train(policy(), RolloutTable(), num_sanity_val_steps=-1)
    assert not (tmp_path / FILE).exists()


def evaluate(rank, port, folder):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    trainer, module = MagicMock(), MagicMock(device=torch.device("cpu"))
    trainer.state.fn, trainer.default_root_dir, trainer.fast_dev_run = "fit", str(folder), False
    trainer.global_step, trainer.is_global_zero = 4, rank == 0
    trainer.fit_loop.epoch_loop.batch_progress.total.processed = 2
    table = RolloutTable()
    rows = [{"prompt": f"{rank}", "response": "", "score": 0.0}] * (rank + 1)
    table.on_validation_batch_end(trainer, module, rows, None, 0)
    table.on_validation_epoch_end(trainer, module)
    dist.destroy_process_group()


def test_the_first_rank_writes_for_all(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=evaluate, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert [row["prompt"] for row in rows_of(tmp_path)] == ["0", "1", "1"]
