"""A checkpoint of another algorithm or another tokenizer is refused, and both are named."""

from __future__ import annotations

import copy

import pytest

from lit_rlhf.callbacks.origin import Origin
from lit_rlhf.checkpoints.reading import read
from lit_rlhf.checkpoints.writing import write


@pytest.fixture
def saved(train, policy, tmp_path, tiny_tokenizer):
    """A checkpoint after one epoch, written with a tokenizer or without one."""

    def save(tokenizer=None, kind=None):
        trainer = train(policy(), Origin())
        trainer.datamodule = tokenizer and type("Data", (), {"tokenizer": tokenizer})()
        origin = Origin()
        checkpoint = {}
        origin.on_save_checkpoint(trainer, trainer.lightning_module, checkpoint)
        write(checkpoint, tmp_path / "a.ckpt")
        return trainer, read(tmp_path / "a.ckpt")

    return save


def load(trainer, checkpoint, module=None):
    Origin().on_load_checkpoint(trainer, module or trainer.lightning_module, checkpoint)


def test_the_same_again_is_taken(saved, tiny_tokenizer):
    trainer, checkpoint = saved(tiny_tokenizer)
    assert checkpoint["origin"]["algorithm"] == "Policy"
    assert checkpoint["origin"]["moment"] == "step 3"
    load(trainer, checkpoint)
    load(trainer, {})


def test_another_algorithm_is_refused(saved, rollouts, tmp_path):
    trainer, checkpoint = saved()
    with pytest.raises(ValueError, match=r"one of Policy and this run is one of Rollouts"):
        load(trainer, checkpoint, rollouts())


def test_another_tokenizer_is_refused(saved, tiny_tokenizer):
    trainer, checkpoint = saved(tiny_tokenizer)
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<more>"])
    other.name_or_path = "other"
    trainer.datamodule.tokenizer = other
    with pytest.raises(ValueError, match=r"with the tokenizer '.*' and this run has 'other'"):
        load(trainer, checkpoint)
    trainer.datamodule = None
    load(trainer, checkpoint)
    load(trainer, saved()[1])


def test_it_speaks_in_a_real_run(train, policy, tmp_path, rollouts):
    train(policy(), Origin()).save_checkpoint(tmp_path / "a.ckpt")

    class Other(type(policy())):
        pass

    with pytest.raises(ValueError, match="one of Policy and this run is one of Other"):
        train(Other(policy().model), Origin(), ckpt_path=tmp_path / "a.ckpt")
