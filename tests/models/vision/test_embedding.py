"""Pictures among embeddings: what the model's own code says of each row alone, by a forest and by padded rows."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.types import Forest, Segment
from tests.tiny_pictures import picture_for, row_logprobs, seeing_forest, seeing_segment

FORESTS = ("llava", "llava_next", "mistral3", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize(("kind", "fused"), [*((kind, True) for kind in FORESTS), ("llava", False)])
def test_a_forest_with_pictures_is_what_the_model_says_of_each_row(kind, fused, look, own, assert_rows_alone):
    backbone, plain = look(kind, fused=fused), own(kind)
    forest = seeing_forest(plain)
    backbone.prepare()
    assert (backbone.layout, backbone.picture_layout) == ("forest", "forest")
    assert backbone.base.config.vision_config._attn_implementation == "sdpa"  # the tower's own stays
    assert_rows_alone(backbone, plain, forest)


@pytest.mark.parametrize(
    ("kind", "attention"), [("gemma3", "auto"), ("llama4", "auto"), ("llava", "sdpa"), ("qwen2_vl", "sdpa")]
)
def test_padded_rows_are_what_the_model_says(kind, attention, look, own):
    backbone, plain = look(kind, attention=attention), own(kind)
    forest = seeing_forest(plain)
    with torch.no_grad():
        assert torch.allclose(backbone.token_logprobs(forest).logprobs, row_logprobs(plain, forest), atol=1e-5)
    assert backbone.picture_layout == "padded"
    assert backbone.layout == ("forest" if kind == "gemma3" else "padded")
    if kind == "gemma3":
        with pytest.raises(ValueError, match="attention is 'forest', but with pictures"):
            look(kind, attention="forest").prepare()


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_gradients_of_a_forest_are_those_of_rows(kind, look, own, stir):
    plain = own(kind)
    forest, gradients = seeing_forest(plain), []
    for attention in ("forest", "sdpa"):
        backbone = stir(look(kind, attention=attention))
        backbone.token_logprobs(forest).logprobs.sum().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
    assert all("language_model" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=2e-4), name


def test_pictures_that_do_not_fit_are_refused_by_name(look, tiny_llama):
    backbone = look()
    segment = seeing_segment(backbone.base, (0,))
    fewer = segment._replace(tokens=segment.tokens[3:], scored=segment.scored[3:])
    with pytest.raises(ValueError, match=r"has 15 image tokens .* its 1 pictures take 16"):
        backbone.hidden_states(Forest.pack([[fewer]]))
    with pytest.raises(ValueError, match=r"1 pictures have 17 image tokens .* gives 16 rows"):
        backbone.eyes.features([picture_for(backbone.base, 0)._replace(num_tokens=17)])
    blind = build_backbone(BackboneConfig(str(tiny_llama())))
    assert blind.vision is None
    assert blind.undrawn_tokens == []
    with pytest.raises(ValueError, match=r"does not take: it reads text alone; .*data\.images"):
        blind.hidden_states(Forest.pack([[segment]]))


def test_text_alone_is_read_as_before(look, own):
    backbone, plain = look(), own()
    forest = Forest.pack([[Segment([50, 51], [False] * 2), Segment([60, 61, 62], [True] * 3, 0)]])
    with torch.no_grad():
        assert torch.allclose(backbone.token_logprobs(forest).logprobs, row_logprobs(plain, forest), atol=1e-5)
    assert backbone.eyes.num_passes == 0
