"""Instructions under a real Trainer: what is trained, of which rows, in which order."""

from __future__ import annotations

import copy
from itertools import chain

import lightning
import pytest
import torch

from datamodules import SFTDataModule
from datamodules.encoding.turns import TurnTokens
from lit_rlhf.types import InstructionBatch

TALK = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "How many legs?"},
    {"role": "assistant", "content": "A spider has eight."},
]
ROWS = [
    {"messages": TALK},
    {"instruction": "Tell me a story.", "input": "", "output": "Once upon a time."},
    {"prompt": "The capital of France is", "completion": " Paris."},
    {"prompt": TALK[:1], "chosen": TALK[1:2], "rejected": [{"role": "assistant", "content": "Rome."}]},
    {"text": "Thank you very much."},
]


@pytest.fixture
def make_data(tiny_tokenizer):
    def make(**options):
        defaults = {"train": ROWS, "tokenizer": copy.deepcopy(tiny_tokenizer), "batch_size": 5, "shuffle_buffer": 0}
        return SFTDataModule(**{**defaults, **options})

    return make


def trained(batch, tokenizer):
    """What is trained of each row, in runs of neighbouring tokens."""
    found = {}
    for part in batch.micro_batches:
        forest = part.forest
        for number, leaf in enumerate(forest.leaves):
            targets = forest.targets[forest.sequences == number].tolist()
            runs = [[forest.tokens[at].item() for at in run] for run in _runs(targets)]
            assert forest.parents[leaf] == -1
            found[part.rows[number]] = [tokenizer.decode(run) for run in runs]
    return found


def _runs(targets):
    runs = []
    for at in targets:
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    return runs


def test_every_form_gives_what_is_to_be_imitated(make_data, tiny_tokenizer):
    (batch,) = make_data().train_dataloader()
    assert isinstance(batch, InstructionBatch)
    assert trained(batch, tiny_tokenizer) == {
        "train:1": ["Paris.</s>", "A spider has eight.</s>"],
        "train:2": ["Once upon a time.</s>"],
        "train:3": [" Paris.</s>"],
        "train:4": ["Paris.</s>"],
        "train:5": ["Thank you very much.</s>"],
    }


def test_rows_in_tokens_keep_their_gaps(make_data):
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9]}
    (batch,) = make_data(train=[row]).train_dataloader()
    assert batch.micro_batches[0].forest.targets.tolist() == [1, 3, 4]


def test_only_the_last_turn_or_everything(make_data, tiny_tokenizer):
    (last,) = make_data(train=ROWS[:1], trained="last").train_dataloader()
    assert trained(last, tiny_tokenizer) == {"train:1": ["A spider has eight.</s>"]}
    (everything,) = make_data(train=ROWS[:1], trained="all").train_dataloader()
    (part,) = everything.micro_batches
    assert part.forest.targets.tolist() == list(range(1, part.forest.num_tokens))


def test_the_budget_cuts_and_changes_nothing_else(make_data, tiny_tokenizer):
    (whole,) = make_data().train_dataloader()
    (cut,) = make_data(token_budget=40).train_dataloader()
    assert trained(cut, tiny_tokenizer) == trained(whole, tiny_tokenizer)
    assert len(cut.micro_batches) > len(whole.micro_batches) == 1
    assert cut.notes["tokens"] == whole.notes["tokens"] == sum(part.forest.num_tokens for part in cut.micro_batches)
    assert cut.notes["room"] == 40 * len(cut.micro_batches)


def test_lengths_count_all_tokens_and_the_trained_ones(make_data):
    assert make_data().task().lengths(TurnTokens([1, 5, 6, 7], [False, True, False, True])) == {
        "whole": 4,
        "trained": 2,
    }


class Recorder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps = []

    def training_step(self, batch, batch_idx):
        self.steps.append([row for part in batch.micro_batches for row in part.rows])
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_anybodys_trainer_and_module(make_data, tmp_path):
    data = make_data(train=[{"text": f"story {number}"} for number in range(10)], batch_size=3, shuffle_buffer=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(max_epochs=2, logger=False, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    module = Recorder()
    trainer.fit(module, data)
    everything = sorted(f"train:{number}" for number in range(1, 11))
    assert [len(step) for step in module.steps] == [3, 3, 3, 1] * 2
    assert [sorted(chain(*module.steps[at : at + 4])) for at in (0, 4)] == [everything] * 2
    assert data.summary() == {"texts": 20}


def test_a_row_without_an_answer_is_refused(make_data):
    with pytest.raises(ValueError, match=r"^train:1: .*; mend the row"):
        list(make_data(train=[{"prompt": "Who?"}]).train_dataloader())


def test_settings_are_named():
    with pytest.raises(ValueError, match=r"data\.token_budget is 0; it must be at least 1"):
        SFTDataModule(token_budget=0)
