"""Which parts of a model look at pictures."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, PaliGemmaConfig

from lit_rlhf.models.loading import load_causal_lm
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.models.vision.kinds import is_seeing, parts_beside_decoder
from tests.tiny_pictures import seeing_forest


@pytest.mark.parametrize("kind", ["llava", "llama4", "mllama"])
def test_what_lies_beside_the_decoder_looks(kind, own, seeing, tiny_llama):
    parts = parts_beside_decoder(own(kind))
    assert {name.rpartition(".")[2] for name in parts} in (
        {"vision_tower", "multi_modal_projector"},
        {"vision_model", "multi_modal_projector"},
    )
    assert is_seeing(AutoConfig.from_pretrained(seeing(kind)))
    assert not is_seeing(AutoConfig.from_pretrained(tiny_llama()))


def test_what_reads_both_ways_is_refused_before_it_is_loaded(tmp_path):
    PaliGemmaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a paligemma model: it does not read the text before a response from left"):
        load_causal_lm(BackboneConfig(str(tmp_path)))


def test_four_bits_leave_tower_and_projector_as_they_are(look):
    backbone = look(quantization="nf4", reference="none")
    kinds = {name: type(part).__name__ for name, part in backbone.base.named_modules() if "Linear" in str(type(part))}
    assert all(("4bit" in kind) == ("language_model" in name) for name, kind in kinds.items() if "lora" not in name)
    forest = seeing_forest(backbone.base)
    backbone.token_logprobs(forest).logprobs.sum().backward()
    assert backbone.picture_layout == "forest"
