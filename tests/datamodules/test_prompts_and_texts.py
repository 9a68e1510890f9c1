"""Prompts with texts beside them: which rows a step has, whatever the workers and ranks, and after a restart."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import PromptAndTextDataModule, PromptDataModule, SFTDataModule
from lit_rlhf.types import PromptAndTextBatch, PromptBatch

PROMPTS = [{"prompt": f"Question {number}?"} for number in range(10)]
TEXTS = [{"text": f"A story of {number} words."} for number in range(7)]


@pytest.fixture
def make_data(tiny_tokenizer):
    """Ten prompts, four a step (3 steps an epoch), beside seven texts, two a step (4 steps an epoch)."""

    def make(prompts=None, texts=None):
        both = {"shuffle_buffer": 5, "tokenizer": copy.deepcopy(tiny_tokenizer)}
        return PromptAndTextDataModule(
            PromptDataModule(**{**both, "train": PROMPTS, "batch_size": 4, **(prompts or {})}),
            SFTDataModule(**{**both, "train": TEXTS, "batch_size": 2, "token_budget": 20, **(texts or {})}),
        )

    return make


def rows_of(batch):
    prompts, texts = batch
    return [prompt.row for prompt in prompts.prompts], [row for part in texts.micro_batches for row in part.rows]


class Recorder(lightning.LightningModule):
    """Notes the rows of every step; fails at step ``fail_at``."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps, self.held_out, self.fail_at = [], [], fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("planted")
        assert isinstance(batch, PromptAndTextBatch)
        self.steps.append(rows_of(batch))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        assert isinstance(batch, PromptBatch)
        self.held_out += [prompt.row for prompt in batch.prompts]

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches >= 1
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, **options):
    defaults = {"max_epochs": 3, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(default_root_dir=tmp_path, **{**defaults, **quiet, **options})


def fit(tmp_path, data, ckpt_path=None, fail_at=None, **options):
    module = Recorder(fail_at)
    trainer(tmp_path, **options).fit(module, data, ckpt_path=ckpt_path)
    return module.steps


def test_epochs_are_those_of_the_prompts_and_texts_go_round(tmp_path, make_data):
    data = make_data()
    steps = fit(tmp_path, data)
    assert len(steps) == 9
    prompts, texts = ([row for step in steps for row in step[part]] for part in (0, 1))
    whole = sorted(f"train:{number}" for number in range(1, 11))
    assert [sorted(prompts[at : at + 10]) for at in (0, 10, 20)] == [whole] * 3
    whole = sorted(f"train:{number}" for number in range(1, 8))
    assert [sorted(texts[at : at + 7]) for at in (0, 7)] == [whole] * 2
    assert texts[:7] != texts[7:14]  # another order
    assert [len(step[1]) for step in steps] == [2, 2, 2, 1, 2, 2, 2, 1, 2]  # no step has texts of two epochs
    assert data.summary() == {"prompts": {"prompts": 30}, "texts": {"texts": 16}}


def test_either_stream_is_what_its_own_data_module_gives(make_data):
    """Beside others or alone, a data module gives the same batches in the same order."""
    data, alone = make_data(), make_data()
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 3
    assert [rows_of(batch)[0] for batch in batches] == [
        [prompt.row for prompt in batch.prompts] for batch in alone.prompts.train_dataloader()
    ]
    assert [batch.texts.micro_batches[0].rows for batch in batches] == [
        batch.micro_batches[0].rows for batch in list(alone.texts.train_dataloader())[:3]
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": None, "max_steps": 9}])
def test_resuming_at_every_step(tmp_path, make_data, num_workers, limits):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(tmp_path, make_data(), enable_checkpointing=True, callbacks=[saver], **limits)
    assert len(whole) == 9
    for step in range(1, 9) if num_workers == 0 else (4,):
        workers = {"num_workers": num_workers}
        data = make_data(workers, workers)
        found = fit(tmp_path, data, ckpt_path=tmp_path / f"step={step}.ckpt", **limits)
        assert found == whole[step:], f"resumed at step {step}"
        assert data.summary() == {"prompts": {"prompts": 30}, "texts": {"texts": 16}}


@pytest.mark.parametrize("fail_at", [0, 2, 3, 4])
def test_a_step_that_failed_is_done_again(tmp_path, make_data, fail_at):
    whole = fit(tmp_path, make_data())
    data = make_data()
    with pytest.raises(RuntimeError, match="planted"):
        fit(tmp_path, data, fail_at=fail_at)
    again = make_data()
    again.load_state_dict(data.state_dict())
    assert rows_of(next(iter(again.train_dataloader()))) == whole[fail_at]


def test_overfitting_repeats_the_same_batches_and_limited_epochs_go_on(tmp_path, make_data):
    whole = fit(tmp_path, make_data())
    steps = fit(tmp_path, make_data(), overfit_batches=2, max_epochs=3)
    assert steps == whole[:2] * 3
    assert fit(tmp_path, make_data(), limit_train_batches=2, max_epochs=4) == whole[:6]


def test_a_second_fit_begins_anew(tmp_path, make_data):
    data = make_data()
    assert fit(tmp_path, data) == fit(tmp_path, data)


def test_ranks_share_the_rows_of_every_step(make_data):
    whole = [rows_of(batch) for batch in make_data().train_dataloader()]
    shares = []
    for rank in range(2):
        data = make_data()
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, max_epochs=1, overfit_batches=0, limit_train_batches=1.0
        )
        data.setup("fit")
        shares.append([rows_of(batch) for batch in data.train_dataloader()])
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for first, second, rows in zip(*shares, whole, strict=True):
        for ours, theirs, both in zip(first, second, rows, strict=True):
            assert ours
            assert len(ours) - len(theirs) in (0, 1)
            assert sorted(ours + theirs) == sorted(both)


def test_everything_but_training_has_prompts_alone(tmp_path, make_data):
    module, data = Recorder(), make_data({"validation": PROMPTS[:2], "test": PROMPTS[:3], "predict": PROMPTS[:1]})
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    run.predict(module, data)
    names = ["validation:1", "validation:2", "test:1", "test:2", "test:3", "predict:1"]
    assert sorted(module.held_out) == sorted(names)
    assert make_data().val_dataloader() == []
    assert data.parts("test") == (data.prompts,)
    assert data.parts("train") == (data.prompts, data.texts)
    assert data.tokenizer is data.prompts.tokenizer


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": {"seed": 1}}, r"data\.prompts\.seed is 1, but the checkpoint was saved with 0"),
        ({"texts": {"batch_size": 3}}, r"data\.texts\.batch_size is 3, but the checkpoint was saved with 2"),
    ],
)
def test_other_streams_are_refused_on_resume(make_data, changed, message):
    state = json.loads(json.dumps(make_data().state_dict()))
    make_data().load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        make_data(**changed).load_state_dict(state)


def test_messages_name_the_part(tmp_path, make_data):
    with pytest.raises(ValueError, match=r"data\.texts\.validation is set, but texts are for training alone"):
        make_data(texts={"validation": TEXTS})
    with pytest.raises(ValueError, match=r"data\.texts\.train is not set"):
        make_data(texts={"train": None}).train_dataloader()
    with pytest.raises(ValueError, match=r"data\.texts\.tokenizer is not set"):
        make_data(texts={"tokenizer": None}).train_dataloader()
    bad = {"train": [{"prompt": "p", "completion": ""}], "on_bad_row": "drop"}
    with pytest.raises(ValueError, match=r"an epoch of data\.texts\.train held no texts to train on"):
        fit(tmp_path, make_data(texts=bad))


def test_the_last_lines_are_of_both(tmp_path, make_data, monkeypatch):
    said = []
    monkeypatch.setattr("datamodules.streamed.rank_zero_info", said.append)
    fit(tmp_path, make_data(), max_epochs=1)
    assert said[0] == "data: prompts 10"
    assert said[1].startswith("data: texts 6, fill ")
