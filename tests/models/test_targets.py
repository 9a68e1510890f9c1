"""Adapters lie on the decoder of a model that reads pictures, and beside it by name."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from lit_rlhf.models.targets import target_modules
from tests.tiny_pictures import make_seeing

LAYERS = [f"model.language_model.layers.{number}." for number in range(2)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    config = AutoConfig.from_pretrained(make_seeing("llava", tmp_path_factory.mktemp("llava")))
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def hit(model, wanted):
    """Names of the layers that PEFT would find."""
    pattern = target_modules(model, wanted)
    return [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]


def test_all_linear_is_the_decoder(llava):
    found = hit(llava, "all-linear")
    assert len(found) == 14
    assert all(name.startswith(tuple(LAYERS)) for name in found)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["q_proj"], [f"{layer}self_attn.q_proj" for layer in LAYERS]),
        (["self_attn.q_proj", "0.self_attn.v_proj"], [LAYERS[0] + "self_attn." + x for x in ("q_proj", "v_proj")]),
        (["multi_modal_projector.linear_1"], ["model.multi_modal_projector.linear_1"]),
        (["linear_2", "lm_head"], ["model.multi_modal_projector.linear_2", "lm_head"]),
        (["proj"], []),
    ],
)
def test_names_are_looked_for_in_the_decoder_first(wanted, expected, llava):
    found = hit(llava, wanted)
    assert set(expected) <= set(found)
    assert len(found) == len(expected) + (wanted[0] == "self_attn.q_proj")  # of the second layer


def test_a_layer_of_the_tower_is_named_by_its_path(llava):
    assert len(hit(llava, ["fc1"])) == 2
    tower = [
        name for name, _ in llava.named_modules() if name.endswith("vision_tower.encoder.layers.0.self_attn.q_proj")
    ]
    assert hit(llava, ["vision_tower.encoder.layers.0.self_attn.q_proj"]) == tower


def test_what_else_is_said_stays(llava, tiny_llama):
    assert target_modules(llava, r".*\.q_proj") == r".*\.q_proj"
    text = AutoModelForCausalLM.from_pretrained(tiny_llama())
    assert target_modules(text, "all-linear") == "all-linear"
    assert target_modules(text, ["q_proj"]) == ["q_proj"]
