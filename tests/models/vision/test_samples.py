"""A picture made of nothing is one that the tower takes."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import LlavaConfig

from lit_rlhf.models.vision.samples import sample_inputs

SHAPES = {
    "llava": (1, 3, 32, 32),
    "llava_next": (1, 3, 3, 32, 32),
    "qwen2_vl": (24, 96),
    "mllama": (1, 1, 2, 3, 32, 32),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_tower_takes_it(kind, look):
    eyes = look(kind).eyes
    picture = eyes.sample_picture()
    assert picture.inputs["pixel_values"].shape == SHAPES[kind]
    (features,) = eyes.features([picture])
    assert len(features.rows) == (2 * 17 if kind == "mllama" else picture.num_tokens)
    assert not torch.isnan(features.rows).any()


def test_no_size_no_sample():
    config = LlavaConfig()
    config.vision_config.image_size = None
    with pytest.raises(ValueError, match="the config of a llava model names no size of pictures"):
        sample_inputs(config, inspect.signature(lambda pixel_values: None))
