"""Loading: what a name may mean, precisions, dropout off, and messages for what cannot be loaded."""

from __future__ import annotations

import json
import logging
import shutil

import bitsandbytes
import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForSequenceClassification

from lit_rlhf.models.loading import (
    drop_lm_head,
    evaluating,
    load_causal_lm,
    local_or_hub,
    root_device,
    switch_dropout_off,
)
from lit_rlhf.models.options import BackboneConfig


def test_it_is_frozen_and_training(tiny_llama):
    model = load_causal_lm(BackboneConfig(str(tiny_llama())))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert not model.is_gradient_checkpointing
    assert load_causal_lm(BackboneConfig(str(tiny_llama()), gradient_checkpointing=True)).is_gradient_checkpointing
    eager = load_causal_lm(BackboneConfig(str(tiny_llama()), attention="eager"))
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(tiny_llama, tmp_path, dtype):
    model = load_causal_lm(BackboneConfig(str(tiny_llama()), dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    model.save_pretrained(tmp_path)
    again = load_causal_lm(BackboneConfig(str(tmp_path)))
    assert again.dtype == getattr(torch, dtype), "auto is what the checkpoint was saved in"


@pytest.mark.parametrize(
    ("kind", "layer"), [("nf4", bitsandbytes.nn.Linear4bit), ("int8", bitsandbytes.nn.Linear8bitLt)]
)
def test_quantised_layers(tiny_llama, kind, layer):
    model = load_causal_lm(BackboneConfig(str(tiny_llama()), quantization=kind))
    packed = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, layer)}
    assert packed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    if kind == "nf4":
        state = model.model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_evaluation_does_not_change_quantised_weights(tiny_llama, kind):
    model = load_causal_lm(BackboneConfig(str(tiny_llama()), quantization=kind))
    tokens = torch.arange(3, 30)[None]
    with torch.no_grad():
        before = model(tokens).logits
        model.eval()
        assert torch.allclose(model(tokens).logits, before, atol=0.0 if kind == "nf4" else 0.01)  # int8 rounds inputs
        model.train()
        assert torch.equal(model(tokens).logits, before)


def test_its_own_dropout_is_off(tmp_path):
    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0.4, resid_pdrop=0.4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load_causal_lm(BackboneConfig(str(tmp_path)))
    assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} == {0.0}
    tokens = torch.arange(3, 30)[None]
    assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert local_or_hub("owner/model") == str(tmp_path / "owner" / "model")
    assert local_or_hub("owner/other") == "owner/other"
    for path in ("./model", "/no/such", "~/no/such/model", "a/b/c"):
        with pytest.raises(ValueError, match=f"no folder '{path}'"):
            local_or_hub(path)


def test_what_cannot_be_loaded(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match="no folder 'runs/missing'"):
        local_or_hub("runs/missing")
    with pytest.raises(ValueError, match=r"no folder '\./missing'"):
        load_causal_lm(BackboneConfig("./missing"))
    with pytest.raises(ValueError, match=r"backbone\.name_or_path 'owner/offline' cannot be loaded"):
        load_causal_lm(BackboneConfig("owner/offline"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"backbone\.name_or_path '.*empty' cannot be loaded"):
        load_causal_lm(BackboneConfig(str(tmp_path / "empty")))
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_llama(), pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled' cannot be loaded"):
        load_causal_lm(BackboneConfig(str(pickled)))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama(), broken)
    (broken / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken' cannot be loaded"):
        load_causal_lm(BackboneConfig(str(broken)))


def test_a_classifier_is_no_language_model(tmp_path):
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is no causal language model: its checkpoint lacks lm_head\.weight \(1 "):
        load_causal_lm(BackboneConfig(str(tmp_path)))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_model_without_its_lm_head(tiny_llama, quantization):
    config = BackboneConfig(str(tiny_llama()), quantization=quantization)
    whole, headless = load_causal_lm(config), load_causal_lm(config, with_lm_head=False)
    assert isinstance(headless.get_output_embeddings(), nn.Identity)
    assert {name for name, _ in whole.named_parameters()} - {name for name, _ in headless.named_parameters()} == {
        "lm_head.weight"
    }
    tokens = torch.arange(3, 30)[None]
    states = [model.get_decoder()(tokens).last_hidden_state for model in (whole, headless)]
    assert torch.equal(*states)


def test_a_tied_embedding_outlives_its_lm_head(tiny_llama, tmp_path):
    headless = load_causal_lm(BackboneConfig(str(tiny_llama(tie_word_embeddings=True))), with_lm_head=False)
    assert "lm_head.weight" not in headless.state_dict()
    assert headless.get_input_embeddings().weight.shape == (320, 64)


def test_a_classifier_loads_where_no_lm_head_is_asked_for(tmp_path):
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    theirs = LlamaForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load_causal_lm(BackboneConfig(str(tmp_path)), with_lm_head=False)
    tokens = torch.arange(3, 30)[None]
    assert torch.equal(model.get_decoder()(tokens).last_hidden_state, theirs.model(tokens).last_hidden_state)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"its checkpoint lacks model\.layers\.0\.mlp\.up_proj\.weight \(1 missing"):
        load_causal_lm(BackboneConfig(str(tmp_path)), with_lm_head=False)


def test_code_of_a_checkpoint_is_never_run(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama(), tmp_path / "remote")
    file = tmp_path / "remote" / "config.json"
    config = json.loads(file.read_text()) | {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    file.write_text(json.dumps(config))
    (tmp_path / "remote" / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_causal_lm(BackboneConfig(str(tmp_path / "remote")))


def test_evaluating_restores_each_part_after_an_exception():
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
    model[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert [part.training for part in model.modules()] == [True, True, False, False]


def test_a_module_without_a_trainer_has_no_device():
    assert root_device(LightningModule()) is None


def test_a_soft_cap_is_never_left_out(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    Gemma2ForCausalLM(Gemma2Config(**shape, **heads, attn_logit_softcapping=2.0)).save_pretrained(tmp_path)
    assert load_causal_lm(BackboneConfig(str(tmp_path))).config._attn_implementation == "eager"


def test_heads_that_come_and_go_are_not_reported(tiny_llama, tmp_path, caplog):
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny_llama(), num_labels=1).save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.propagate, before = True, logger.propagate
    caplog.clear()  # of what was said when it was made
    try:
        load_causal_lm(BackboneConfig(str(tmp_path)), with_lm_head=False)
        assert "score.weight" not in caplog.text
        with pytest.raises(ValueError, match="lacks lm_head"):
            load_causal_lm(BackboneConfig(str(tmp_path)))
        assert "score.weight" in caplog.text
    finally:
        logger.propagate = before


def test_dropout_of_a_made_module_is_switched_off():
    """Of layers, and of numbers that a forward pass reads; what is off already is not counted."""
    module = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    module.extra = nn.Module()
    module.extra.hidden_dropout, module.extra.dropout_rate_name, module.extra.attention_dropout = 0.5, 0.5, 0.0
    dropping = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    assert switch_dropout_off(module) == len(dropping) + 1
    assert {part.p for part in dropping} == {0.0}
    assert (module.extra.hidden_dropout, module.extra.dropout_rate_name) == (0.0, 0.5)
    assert switch_dropout_off(module) == 0
    tokens = torch.arange(5)[None]
    module.train()
    assert torch.equal(module(tokens).logits, module(tokens).logits)


def test_an_lm_head_is_left_out_by_its_name():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    assert drop_lm_head(model) == "lm_head"
    assert isinstance(model.get_output_embeddings(), nn.Identity)
