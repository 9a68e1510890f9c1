"""Which tokenizer a callback uses, and what ends an answer."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer

from lit_rlhf.callbacks.tokenizer import stop_tokens, tokenizer_of


def test_given_named_or_that_of_the_data(tiny_llama, tiny_tokenizer):
    trainer = SimpleNamespace(datamodule=SimpleNamespace(tokenizer=tiny_tokenizer))
    other = deepcopy(tiny_tokenizer)
    assert tokenizer_of(trainer, other) is other
    assert tokenizer_of(trainer, str(tiny_llama())).get_vocab() == tiny_tokenizer.get_vocab()
    assert tokenizer_of(trainer, None) is tiny_tokenizer


def test_none_is_asked_for():
    with pytest.raises(ValueError, match="give this callback one, as tokenizer="):
        tokenizer_of(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), None)


def test_the_model_may_name_more_ends_than_the_tokenizer(backbone, tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    backbone.base.generation_config.eos_token_id = [7, end]
    assert stop_tokens(tiny_tokenizer, backbone) == [end, 7]
    backbone.base.generation_config.eos_token_id = None
    assert stop_tokens(tiny_tokenizer, backbone) == [end]
    endless = deepcopy(tiny_tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="names an end-of-sequence token"):
        stop_tokens(endless, backbone)
