"""The data module under a real Trainer: what is trained on, in which order, and after a restart at any step."""

from __future__ import annotations

import copy
import gzip
import json
from collections import Counter
from itertools import chain

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import datamodules
from datamodules import PreferenceDataModule, Source, streamed
from datamodules.stream import StepStream
from datamodules.streamed import Position
from lit_rlhf.types import Cursor, PreferenceBatch

ROWS = [{"prompt": f"p {number}", "chosen": " yes", "rejected": " no"} for number in range(22)]
ROWS[3]["chosen"] = ""


class Recorder(lightning.LightningModule):
    """Notes the rows of every step; fails at step ``fail_at``."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps, self.validated, self.fail_at = [], [], fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("planted")
        assert isinstance(batch, PreferenceBatch)
        self.steps.append([row for pairs in batch.micro_batches for row in pairs.rows])
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated.append([row for pairs in batch.micro_batches for row in pairs.rows])

    def predict_step(self, batch, batch_idx):
        return [row for pairs in batch.micro_batches for row in pairs.rows]

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches >= 1
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def make_data(tiny_tokenizer):
    def make(**options):
        defaults = {"train": ROWS, "tokenizer": copy.deepcopy(tiny_tokenizer), "batch_size": 4, "shuffle_buffer": 8}
        return PreferenceDataModule(**{**defaults, "on_bad_row": "drop", **options})

    return make


def trainer(tmp_path, **options):
    defaults = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(default_root_dir=tmp_path, **{**defaults, **quiet, **options})


def fit(tmp_path, data, ckpt_path=None, fail_at=None, **options):
    module = Recorder(fail_at)
    trainer(tmp_path, **options).fit(module, data, ckpt_path=ckpt_path)
    return module


def test_two_epochs(tmp_path, make_data):
    data = make_data(validation=ROWS[:6])
    module = fit(tmp_path, data)
    epochs = module.steps[:6], module.steps[6:]
    everything = sorted(f"train:{number}" for number in range(1, 23) if number != 4)
    assert [sorted(chain(*epoch)) for epoch in epochs] == [everything, everything]
    assert epochs[0] != epochs[1]
    in_order = [f"validation:{number}" for number in (1, 2, 3, 5, 6)]
    assert sorted(chain(*module.validated[-2:])) == in_order
    assert data.summary() == {"dropped/empty_response": 2, "pairs": 42}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_epochs": None, "max_steps": 12}])
def test_resuming_at_every_step_of_two_epochs(tmp_path, make_data, num_workers, limits):
    """Where the length of an epoch is counted, and where it is not."""
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(tmp_path, make_data(), enable_checkpointing=True, callbacks=[saver], **limits).steps
    assert len(whole) == 12
    for step in range(1, 12):
        data = make_data(num_workers=num_workers)
        module = fit(tmp_path, data, ckpt_path=tmp_path / f"step={step}.ckpt", **limits)
        assert module.steps == whole[step:], f"resumed at step {step}"
        assert data.summary() == {"dropped/empty_response": 2, "pairs": 42}


@pytest.mark.parametrize(
    ("limits", "is_counted"),
    [
        ({"max_epochs": 1}, True),
        ({"max_epochs": 2, "max_steps": 4}, True),  # the fewer of the two
        ({"max_epochs": None, "max_steps": 4}, False),
        ({"max_epochs": None, "max_steps": 4, "limit_train_batches": 0.5}, True),
        ({"max_epochs": None, "max_steps": 4, "limit_train_batches": 2}, False),
        ({"max_epochs": None, "max_steps": 4, "val_check_interval": 0.5}, True),
        ({"max_epochs": None, "max_steps": 4, "overfit_batches": 2}, True),
    ],
)
def test_rows_are_counted_where_their_number_matters(tmp_path, make_data, monkeypatch, limits, is_counted):
    counted = []
    num_batches = StepStream.num_batches
    monkeypatch.setattr(StepStream, "num_batches", lambda stream: counted.append(stream) or num_batches(stream))
    module = fit(tmp_path, make_data(), **limits)
    assert len(module.steps) == (6 if limits == {"max_epochs": 1} else 4)
    assert bool(counted) is is_counted


@pytest.mark.parametrize("fail_at", [0, 3, 5, 6, 7])
def test_a_step_that_failed_is_done_again(tmp_path, make_data, fail_at):
    whole = fit(tmp_path, make_data()).steps
    data, module = make_data(), Recorder(fail_at)
    failing = trainer(tmp_path)
    with pytest.raises(RuntimeError, match="planted"):
        failing.fit(module, data)
    again = make_data()
    again.load_state_dict(data.state_dict())
    assert next(iter(again.train_dataloader())).micro_batches[0].rows == tuple(whole[fail_at])


def test_a_stream_opened_before_the_checkpoint_is_read_goes_on_too(make_data):
    whole = [batch.cursor for batch in make_data().train_dataloader()]
    assert whole[-1] == (1, 0, 0, 0, ())
    data = make_data()
    loader = data.train_dataloader()
    data.load_state_dict({**data.state_dict(), "cursor": json.loads(json.dumps(whole[1]))})
    assert [batch.cursor for batch in loader] == whole[2:]


def test_validation_inside_an_epoch_does_not_move_the_position(tmp_path, make_data):
    plain = fit(tmp_path, make_data()).steps
    assert fit(tmp_path, make_data(validation=ROWS), val_check_interval=2).steps == plain


def test_limited_epochs_go_on_where_the_last_one_ended(tmp_path, make_data):
    whole = fit(tmp_path, make_data()).steps
    assert fit(tmp_path, make_data(), limit_train_batches=3, max_epochs=4).steps == whole


def test_overfitting_repeats_the_same_batches(tmp_path, make_data):
    steps = fit(tmp_path, make_data(), overfit_batches=2, max_epochs=3).steps
    assert steps == steps[:2] * 3


def test_a_second_fit_begins_anew(tmp_path, make_data):
    data = make_data()
    assert fit(tmp_path, data).steps == fit(tmp_path, data).steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, r"data\.seed is 1, but the checkpoint was saved with 0"),
        ({"batch_size": 8}, r"data\.batch_size is 8, but the checkpoint was saved with 4"),
        ({"shuffle_buffer": 9}, r"data\.shuffle_buffer is 9"),
        ({"train": ROWS[:-1]}, r"data\.train is \[\[None, 1\.0, \[21, "),
    ],
)
def test_another_stream_is_refused_on_resume(make_data, options, message):
    state = json.loads(json.dumps(make_data().state_dict()))
    make_data().load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        make_data(**options).load_state_dict(state)


def test_a_checkpoint_can_be_evaluated_on_other_data(tmp_path, make_data):
    module, fitted = Recorder(), trainer(tmp_path, max_epochs=1)
    fitted.fit(module, make_data())
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    data = make_data(train=None, validation=ROWS[:3], batch_size=2, seed=5)
    trainer(tmp_path).validate(module, data, ckpt_path=tmp_path / "last.ckpt")
    assert list(chain(*module.validated)) == ["validation:1", "validation:2", "validation:3"]


@pytest.mark.parametrize("has_failed", [False, True])
def test_the_last_line_is_of_all_ranks_unless_one_may_be_gone(make_data, monkeypatch, has_failed):
    """To ask a rank that is gone would wait for ever."""
    said, data = [], make_data()
    monkeypatch.setattr(streamed, "rank_zero_info", said.append)
    monkeypatch.setattr(streamed, "_over_ranks", lambda counts: counts + counts)
    data._position = Position(Cursor(), Counter({"pairs": 3, "tokens": 30, "room": 40}))
    if has_failed:
        data.on_exception(RuntimeError("planted"))
    data.teardown("fit")
    data.teardown("validate")
    assert said == [f"data: pairs {3 if has_failed else 6}, fill 75%"]


def test_an_epoch_without_a_pair_is_refused(tmp_path, make_data):
    with pytest.raises(ValueError, match=r"held no pairs to train on: {'dropped/identical_responses': 5}"):
        fit(tmp_path, make_data(train=[{"prompt": "p", "chosen": "a", "rejected": "a"}] * 5))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_row_stops_the_run_by_its_address(tmp_path, make_data, num_workers):
    with pytest.raises(ValueError, match=r"train:4: 'chosen' has an empty response; mend the row, or set data\.on_bad"):
        fit(tmp_path, make_data(on_bad_row="raise", num_workers=num_workers))


def test_counts_of_several_sources_stay_apart(tmp_path, make_data):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    like = [Source(str(tmp_path / "a.jsonl"), name="a"), Source(str(tmp_path / "b.jsonl"), name="b", weight=2)]
    data = make_data(train=like)
    fit(tmp_path, data, max_epochs=1)
    assert data.summary() == {"dropped/empty_response/a": 1, "dropped/empty_response/b": 2, "pairs": 63}


def test_predict_in_file_order(tmp_path, make_data):
    batches = trainer(tmp_path).predict(Recorder(), make_data(predict=ROWS[4:12], token_budget=10_000))
    assert list(chain(*batches)) == [f"predict:{number}" for number in range(1, 9)]


def test_weights_out_of_training_are_ignored_loudly(tmp_path, make_data):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.warns(UserWarning, match=r"data\.test is read in file order: weights are ignored"):
        make_data(test=Source(str(tmp_path / "a.jsonl"), weight=2)).test_dataloader()


def test_settings_are_named():
    with pytest.raises(ValueError, match=r"data\.batch_size is 0; it must be at least 1"):
        PreferenceDataModule(batch_size=0)
    with pytest.raises(ValueError, match=r"data\.train is not set"):
        PreferenceDataModule(tokenizer="x").train_dataloader()
    with pytest.raises(ValueError, match=r"data\.tokenizer is not set"):
        PreferenceDataModule(train=ROWS).train_dataloader()
    assert PreferenceDataModule().val_dataloader() == []


def test_tokenizer_from_a_folder_with_a_template(tiny_llama, tmp_path):
    data = PreferenceDataModule(tokenizer=str(tiny_llama()), chat_template="{{ messages }}")
    assert data.tokenizer is data.tokenizer
    assert data.tokenizer.chat_template == "{{ messages }}"


def test_public_names():
    assert all(hasattr(datamodules, name) for name in datamodules.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = datamodules.Nothing


def test_real_dialogues(tmp_path, shared_data):
    folder = shared_data / "hh_rlhf_harmless" / "rows_0_1799.jsonl.gz"
    data = PreferenceDataModule(
        train=str(folder),
        tokenizer=str(shared_data / "models" / "stories260k-llama"),
        max_length=512,
        on_bad_row="drop",
    )
    batches = list(data.train_dataloader())
    with gzip.open(folder) as lines:
        assert sum(1 for _ in lines) == 1800
    assert sum(batch.num_pairs for batch in batches) == 1796
    assert sum(batch.notes.get("dropped/empty_response", 0) for batch in batches) == 4
    assert len(batches) == len(data.train_dataloader()) == 113
    longest = max(pairs.forest.positions.max().item() for batch in batches for pairs in batch.micro_batches)
    assert longest == 511
