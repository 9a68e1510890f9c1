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


@pytest.mark.parametrize("kind", ["llava", "llama4", "mllama"])
def test_four_bits_leave_tower_and_projector_as_they_are(kind, look):
    """And adapters land on the decoder, what looks at pictures in it among them."""
    backbone = look(kind, quantization="nf4", reference="none")
    head = backbone.base.get_output_embeddings()
    places = {name: part for name, part in backbone.base.named_modules() if "Linear" in type(part).__name__}
    for name, part in places.items():
        is_inside = "language_model" in name and part is not head
        assert "lora" in name or ("4bit" in type(part).__name__) == is_inside, name
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert all("language_model" in name and "lm_head" not in name for name in trained)
    assert any("cross_attn.v_proj" in name for name in trained) == (kind == "mllama")
    backbone.token_logprobs(seeing_forest(backbone.base)).logprobs.sum().backward()
    assert backbone.picture_layout == ("padded" if kind == "llama4" else "forest")
