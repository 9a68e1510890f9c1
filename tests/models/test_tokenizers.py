"""Which tokenizer a run uses, and what ends an answer."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
from lightning.pytorch import LightningModule, Trainer

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.models.tokenizers import policy_tokenizer, stop_tokens, tokenizer_of, with_padding


@pytest.fixture
def backbone(tiny_llama):
    return build_backbone(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4)), reference="none")


def test_given_named_or_that_of_the_data(tiny_llama, tiny_tokenizer):
    trainer = SimpleNamespace(datamodule=SimpleNamespace(tokenizer=tiny_tokenizer))
    other = deepcopy(tiny_tokenizer)
    assert tokenizer_of(trainer, other) is other
    assert tokenizer_of(trainer, str(tiny_llama())).get_vocab() == tiny_tokenizer.get_vocab()
    assert tokenizer_of(trainer, None) is tiny_tokenizer


def test_none_is_asked_for():
    with pytest.raises(ValueError, match="give one, as tokenizer="):
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


def test_a_pad_token_that_never_ends_a_text(backbone, tiny_tokenizer):
    """The own one where it is harmless, else another special token; the tokenizer that was given stays as it is."""
    assert with_padding(tiny_tokenizer, backbone).pad_token == "<pad>"
    shared = deepcopy(tiny_tokenizer)
    shared.pad_token = shared.eos_token
    assert with_padding(shared, backbone).pad_token == "<s>"
    assert shared.pad_token == shared.eos_token
    backbone.base.generation_config.eos_token_id = [1, 2]  # <s> ends answers too
    assert with_padding(shared, backbone).pad_token is None
    shared.unk_token = "<|system|>"
    assert with_padding(shared, backbone).pad_token == "<|system|>"


@pytest.mark.parametrize(("spare_rows", "pad"), [(1, "<|pad|>"), (0, None)])
def test_a_new_pad_token_where_the_embedding_has_a_row_for_it(backbone, tiny_tokenizer, spare_rows, pad):
    bare = deepcopy(tiny_tokenizer)
    bare.pad_token = bare.bos_token = None
    specials = [token for token in bare.all_special_ids if token != bare.eos_token_id]
    backbone.base.generation_config.eos_token_id = [*specials, bare.eos_token_id]
    backbone.base.resize_token_embeddings(len(bare) + spare_rows)
    padded = with_padding(bare, backbone)
    assert padded.pad_token == pad
    assert len(padded) == len(bare) + spare_rows
    assert padded.pad_token_id == (len(bare) if pad else None)


@pytest.mark.parametrize("has_trainer", [False, True])
def test_the_tokenizer_of_a_policy(backbone, tiny_llama, tiny_tokenizer, tmp_path, has_trainer):
    """What was given, else that of the data, else the one beside the weights; with a Trainer or without one."""
    module = LightningModule()
    if has_trainer:
        module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    other = deepcopy(tiny_tokenizer)
    assert policy_tokenizer(module, other, backbone) is other
    assert policy_tokenizer(module, str(tiny_llama()), backbone).get_vocab() == other.get_vocab()
    assert policy_tokenizer(module, None, backbone).get_vocab() == other.get_vocab()
    if has_trainer:
        module.trainer.datamodule = SimpleNamespace(tokenizer=other)
        assert policy_tokenizer(module, None, backbone) is other
    with pytest.raises(ValueError, match=r"no tokenizer lies beside '.*bare': give one, as tokenizer="):
        policy_tokenizer(module, str(empty(tmp_path / "bare")), backbone)
    if not has_trainer:
        backbone.base.name_or_path = str(empty(tmp_path / "weights"))
        with pytest.raises(ValueError, match=r"no tokenizer lies beside '.*weights'"):
            policy_tokenizer(module, None, backbone)


def empty(folder):
    folder.mkdir()
    return folder
