"""What models make of pictures: the tensors of their own processors, and as many tokens as the tower has features."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaNextProcessor,
    LlavaProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from datamodules.pictures import PictureProcessor, load_processor
from datamodules.pictures.processors import _digest, holds_processor
from tests.tiny_vision import LLAVA_TEMPLATE, make_tokenizer

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
SIZES = [(1, 1), (1, 3), (3, 1), (40, 30), (30, 40), (1, 50), (200, 100)]


def loaded(folder):
    return load_processor(str(folder), AutoTokenizer.from_pretrained(folder))


def llava_tokenizer():
    return make_tokenizer(["<image>"], "</s>", LLAVA_TEMPLATE)


def test_llava_takes_what_its_own_processor_gives(tiny_llava):
    picture, ids = loaded(tiny_llava)(NOISE)
    theirs = AutoProcessor.from_pretrained(tiny_llava)(images=NOISE, text="<image>", return_tensors="pt")
    assert set(picture.inputs) == {"pixel_values"}
    assert torch.equal(picture.inputs["pixel_values"], theirs["pixel_values"])
    token = AutoTokenizer.from_pretrained(tiny_llava).convert_tokens_to_ids("<image>")
    assert ids == [token] * 16
    assert picture.num_tokens == 16


def test_qwen_takes_what_its_own_processor_gives(tiny_qwen2_vl):
    picture, ids = loaded(tiny_qwen2_vl)(NOISE)
    theirs = AutoImageProcessor.from_pretrained(tiny_qwen2_vl, backend="pil")(images=NOISE, return_tensors="pt")
    assert {name: value.tolist() for name, value in picture.inputs.items()} == {
        name: theirs[name].tolist() for name in ("pixel_values", "image_grid_thw")
    }
    time, height, width = picture.inputs["image_grid_thw"][0].tolist()
    assert len(ids) == picture.num_tokens == time * height * width // 4


@pytest.mark.parametrize("size", [(30, 28), (60, 20), (20, 60)])
def test_llama_3_2_vision_takes_what_its_own_processor_gives(tiny_mllama, size):
    """Beside the text's own token that is one token of it, the beginning of a text not among them."""
    image = NOISE.resize(size)
    picture, ids = loaded(tiny_mllama)(image)
    own = AutoProcessor.from_pretrained(tiny_mllama, backend="pil")
    theirs = own(images=[image], text=["<|image|>What?"], add_special_tokens=False, return_tensors="pt")
    assert set(picture.inputs) == {"pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"}
    for name, value in picture.inputs.items():
        assert torch.equal(value, theirs[name]), name
    assert picture.inputs["aspect_ratio_mask"].sum() == 1 + int(size != (30, 28))
    assert ids == [own.image_token_id]
    assert picture.num_tokens == 1
    whole = PictureProcessor(own, AutoTokenizer.from_pretrained(tiny_mllama))
    assert whole(image)[0].digest == picture.digest


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", ["tiny_llava", "tiny_qwen2_vl"])
def test_there_is_a_token_for_every_feature(request, model, size):
    folder = request.getfixturevalue(model)
    picture, _ = loaded(folder)(NOISE.resize(size))
    tower = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        features = tower.model.get_image_features(**picture.inputs, return_dict=True).pooler_output
    assert sum(map(len, features)) == picture.num_tokens


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1)])
def test_axes_of_tiny_pictures_are_not_mixed_up(tiny_llava, size):
    picture, _ = loaded(tiny_llava)(Image.new("RGB", size, (255, 0, 0)))
    red, green, blue = picture.inputs["pixel_values"][0]
    assert red.min() > 1.5
    assert max(green.max(), blue.max()) < -1.4


def test_llava_next_is_spelled_by_its_processor():
    tokenizer = llava_tokenizer()
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 32]]
    )
    whole = LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    processor = PictureProcessor(whole, tokenizer)
    picture, ids = processor(NOISE)
    assert set(picture.inputs) == {"pixel_values", "image_sizes"}
    assert picture.inputs["image_sizes"].tolist() == [[30, 40]]
    assert (
        len(ids)
        == whole(images=NOISE, text="<image>", add_special_tokens=False, return_tensors="pt")["input_ids"].numel()
    )
    assert processor(NOISE.resize((40, 80)))[0].num_tokens != picture.num_tokens


def test_equal_pictures_have_equal_digests_and_others_do_not(tiny_llava, tiny_qwen2_vl):
    llava, qwen = loaded(tiny_llava), loaded(tiny_qwen2_vl)
    assert llava(NOISE)[0].digest == llava(NOISE.copy())[0].digest
    assert len({llava(NOISE)[0].digest, llava(NOISE.rotate(180))[0].digest, qwen(NOISE)[0].digest}) == 3
    white = [
        qwen(Image.new("RGB", size, "white"))[0] for size in ((16, 64), (64, 16))
    ]  # the same patches, another grid
    assert torch.equal(white[0].inputs["pixel_values"], white[1].inputs["pixel_values"])
    assert white[0].digest != white[1].digest


def test_the_same_numbers_in_another_shape_are_another_picture():
    numbers = torch.zeros(2, 3)
    others = [(numbers.T, [1]), (numbers.view(torch.int32), [1]), (numbers, [2])]
    assert len({_digest({"x": value}, ids) for value, ids in [(numbers, [1]), (numbers.clone(), [1]), *others]}) == 4


def test_a_processor_of_another_model_is_refused(tiny_llava, tiny_qwen2_vl, tiny_tokenizer):
    with pytest.raises(
        ValueError, match=r"LlavaProcessor marks pictures by '<image>', which is no token of .* data\.processor"
    ):
        load_processor(str(tiny_llava), AutoTokenizer.from_pretrained(tiny_qwen2_vl))
    with pytest.raises(ValueError, match=r"marks pictures by '<\|image_pad\|>', which is no token"):
        load_processor(str(tiny_qwen2_vl), tiny_tokenizer)


def test_a_processor_that_lacks_a_setting_is_refused_at_once():
    tokenizer = llava_tokenizer()
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match="LlavaProcessor cannot take a picture: TypeError"):
        PictureProcessor(LlavaProcessor(images, tokenizer), tokenizer)
    with pytest.raises(ValueError, match="does not say how many tokens a picture is; give the whole processor"):
        PictureProcessor(images, tokenizer)


def test_a_folder_without_a_processor_is_refused(tmp_path, tiny_llama, tiny_tokenizer):
    assert not holds_processor(str(tiny_llama()))
    with pytest.raises(ValueError, match="holds no processor of pictures"):
        load_processor(str(tiny_llama()), tiny_tokenizer)
    (tmp_path / "preprocessor_config.json").write_text("{")
    assert holds_processor(str(tmp_path))
    with pytest.raises(ValueError, match="holds no processor of pictures"):
        load_processor(str(tmp_path), tiny_tokenizer)


def test_what_only_torchvision_can_prepare_is_refused(tmp_path, tiny_tokenizer):
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Llama4ImageProcessor"}')
    with pytest.raises(ValueError, match="needs torchvision, which is not installed: install it"):
        load_processor(str(tmp_path), tiny_tokenizer)


def test_torchvision_is_never_imported(tiny_llava, tiny_qwen2_vl, tiny_mllama):
    loaded(tiny_llava)(NOISE), loaded(tiny_qwen2_vl)(NOISE), loaded(tiny_mllama)(NOISE)
    assert "torchvision" not in sys.modules
