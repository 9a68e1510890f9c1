"""Rewards of single rows, before training and at its end."""

from __future__ import annotations

import json

import pytest

from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.callbacks.held_out import FILE, HeldOutRows
from lit_rlhf.models.options import BackboneConfig, LoraOptions


def rows(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


@pytest.fixture
def module(tiny_llama):
    return lambda: DPOModule(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4)))


def test_implicit_rewards_before_and_after(module, train, tmp_path):
    train(module(), HeldOutRows(), num_sanity_val_steps=-1)
    first, last = rows(tmp_path)[0], rows(tmp_path)[-1]
    assert (first["step"], first["chosen"], first["rejected"]) == (0, 0, 0)
    assert last["step"] > 0
    assert last["chosen"] != 0
    assert last["chosen_length"] > 0
    assert {row["step"] for row in rows(tmp_path)} == {0, last["step"]}


def test_scores_of_a_reward_model(reward, train, tmp_path):
    train(reward(), HeldOutRows(), num_sanity_val_steps=-1)
    names = {"step", "chosen", "rejected", "chosen_length", "rejected_length"}
    assert all(row.keys() == names for row in rows(tmp_path))


def test_no_more_rows_than_asked_for(module, train, tmp_path):
    watching = HeldOutRows(num_rows=1)
    train(module(), watching, num_sanity_val_steps=-1)
    assert [row["step"] for row in rows(tmp_path)] == [0, watching.last[0]["step"]]
    with pytest.raises(ValueError, match="num_rows is 0"):
        HeldOutRows(num_rows=0)


def test_a_resumed_run_compares_with_the_same_beginning(module, train, tmp_path):
    before = HeldOutRows()
    before.load_state_dict({"first": [{"step": -1, "chosen": 5.0}]})
    assert before.state_dict() == {"first": [{"step": -1, "chosen": 5.0}]}
    train(module(), before)
    assert rows(tmp_path)[0] == {"step": -1, "chosen": 5.0}


def test_responses_are_kept_elsewhere(rollouts, iterate, tmp_path):
    iterate(rollouts(), HeldOutRows(), num_sanity_val_steps=-1, limit_val_batches=1.0)
    assert not (tmp_path / FILE).exists()


def test_nothing_is_left_by_a_trial(module, train, tmp_path):
    train(module(), HeldOutRows(), fast_dev_run=True)
    assert not (tmp_path / FILE).exists()
