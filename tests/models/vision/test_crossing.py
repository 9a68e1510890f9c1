"""Pictures that text attends to by layers of their own: what transformers says of each row alone."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.types import Forest, Segment
from tests.tiny_pictures import picture_for, row_logits, row_logprobs, seeing_forest, seeing_segment

IMAGE = 320  # outside of the head, as that of Llama 3.2 Vision
LAYOUTS = {"forest": "auto", "padded": "sdpa"}


def text(tokens, seeds=(), model=None):
    """A root; the image tokens among ``tokens`` stand for pictures."""
    pictures = tuple(picture_for(model, seed) for seed in seeds)
    return Segment(tokens, [False] * len(tokens), -1, pictures)


def response(start, length):
    return Segment(list(range(start, start + length)), [True] * length, 0)


def awkward_forest(model):
    """Pictures at the beginning, at the end, side by side, and as often as not; every second text has none."""
    return Forest.pack(
        [
            [text([IMAGE, 40, 41], (1,), model), response(100, 4), response(110, 2)],
            [text([42, 43]), response(120, 3)],
            [text([44, 45, IMAGE], (0,), model), response(130, 3)],
            [text([46, IMAGE, IMAGE, 47, 48, IMAGE, 49], (0, 1, 2), model), response(140, 5), response(150, 1)],
            [text([50, 51, 52]), response(160, 3)],
            [text([IMAGE, IMAGE], (2, 2), model), response(170, 2)],
        ]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [seeing_forest, awkward_forest])
def test_every_row_is_what_the_model_says_of_it_alone(make, layout, look, own, assert_rows_alone):
    backbone, plain = look("mllama", attention=LAYOUTS[layout]), own("mllama")
    forest = make(plain)
    backbone.prepare()
    assert (backbone.layout, backbone.picture_layout) == (layout, layout)
    assert_rows_alone(backbone, plain, forest)


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"attention": "sdpa"}], ids=str)
def test_gradients_are_those_of_rows_alone(options, look, own, stir):
    plain = own("mllama")
    forest = awkward_forest(plain)
    backbone = stir(look("mllama", **options))
    backbone.token_logprobs(forest).logprobs.sum().backward()
    merged = stir(look("mllama", attention="sdpa")).model
    row_logprobs(merged, forest).sum().backward()
    expected = {name: p.grad for name, p in merged.named_parameters() if p.requires_grad}
    trained = {name: p.grad for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert trained.keys() == expected.keys()
    assert any("cross_attn.k_proj" in name for name in trained)
    assert not any("vision_model" in name or "projector" in name for name in trained)
    for name, gradient in trained.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=2e-4), name


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_picture_goes_through_the_tower_once_for_all_roles(attention, look):
    backbone = look("mllama", attention=attention)
    forest = awkward_forest(backbone.base)
    backbone.prepare()
    backbone.eyes.forget()
    for role in ("policy", "reference", "policy"):
        with backbone.role(role):
            backbone.token_logprobs(forest)
    assert backbone.eyes.num_passes == 3


def test_a_trained_projector_learns_in_both_layouts(look, stir):
    lora, gradients = {"target_modules": ["q_proj", "multi_modal_projector"]}, []
    for attention in ("auto", "sdpa"):
        backbone = stir(look("mllama", lora=lora, attention=attention))
        backbone.token_logprobs(awkward_forest(backbone.base)).logprobs.sum().backward()
        trained = {name: p.grad for name, p in backbone.named_parameters() if "projector" in name and p.requires_grad}
        assert trained
        gradients.append(torch.cat([gradient.flatten() for gradient in trained.values()]))
    assert gradients[0].abs().max() > 1e-3
    assert torch.allclose(*gradients, rtol=1e-3, atol=2e-4)


def test_text_alone_is_a_forest_too(look, own):
    backbone, plain = look("mllama"), own("mllama")
    forest = Forest.pack([[text([50, 51]), response(60, 3), response(70, 2)]])
    with torch.no_grad():
        assert torch.allclose(backbone.token_logprobs(forest).logprobs, row_logprobs(plain, forest), atol=1e-5)
    assert backbone.layout == "forest"
    assert backbone.eyes.num_passes == 0


def test_what_the_model_generates_for_rows_that_fit_together_is_what_it_says_of_each(look, own):
    """Rows with one, two and no pictures, each greedily as alone."""
    backbone, plain = look("mllama"), own("mllama")
    shown = [seeing_segment(plain, seeds, 40) for seeds in ((0,), (1, 2), (), (2,), (0, 1))]
    options = {"stop_tokens": [2], "temperature": 0.0}
    answers = backbone.generate([one.tokens for one in shown], 4, pictures=[one.pictures for one in shown], **options)
    for one, answer in zip(shown, answers, strict=True):
        row = [*one.tokens]
        for token in answer:
            with torch.no_grad():
                assert int(row_logits(plain, row, one.pictures)[-1].argmax()) == token
            row.append(token)
    tokens, pictures = torch.tensor([[IMAGE, 5], [6, 5]]), [picture_for(plain, 0)]
    with pytest.raises(ValueError, match="rows with different numbers of pictures"):
        backbone.eyes.own_inputs(tokens, torch.ones_like(tokens), pictures)


def test_text_without_pictures_beside_some_attends_to_zeros_that_no_mask_hides(look):
    """In half precision a row that is masked as a whole is no number."""
    eyes = look("mllama").eyes
    tokens, picture = torch.tensor([[IMAGE, 5], [6, 5]]), eyes.sample_picture()
    shown = eyes.shown_after(tokens, torch.ones_like(tokens), [picture])
    assert shown.keys() == {"cross_attention_mask", "full_text_row_masked_out_mask"}
    seen, nothing = shown["cross_attention_mask"][:, 0, 0]
    assert (seen == 0).tolist() == [True] * 17 + [False] * 17  # one tile of two
    assert (nothing == 0).all()
    assert shown["full_text_row_masked_out_mask"].flatten().tolist() == [1, 0]


def test_pictures_that_do_not_fit_are_refused_by_name(look, seeing, own):
    backbone, plain = look("mllama"), own("mllama")
    backbone.prepare()
    seen = text([40, IMAGE, 41], (0,), plain)
    with pytest.raises(ValueError, match=r"has 1 image tokens .* its 2 pictures take 2"):
        backbone.hidden_states(Forest.pack([[seen._replace(pictures=seen.pictures * 2)]]))
    with pytest.raises(ValueError, match="takes pictures at the root of a tree alone"):
        backbone.hidden_states(Forest.pack([[text([40]), seen._replace(parent=0)]]))
    other = seen._replace(pictures=(picture_for(own("llava"), 0),))
    with pytest.raises(ValueError, match=r"one image token and .* not 16 and pixel_values: data\.processor is another"):
        backbone.hidden_states(Forest.pack([[other]]))
