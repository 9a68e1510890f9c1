"""Prompts with pictures from the command line: the tokens and pictures that training would see, and what answers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from lit_rlhf.cli import main
from lit_rlhf.commands.asking import ask
from tests.tiny_vision import draw


@pytest.fixture(scope="module")
def tokenizer(tiny_llava):
    return AutoTokenizer.from_pretrained(tiny_llava)


@pytest.fixture
def pictures(tmp_path):
    return [draw(tmp_path / f"{colour}.png", colour=colour) for colour in ("red", "blue")]


def test_texts_show_the_pictures_of_the_command_line(tiny_llava, tokenizer, pictures):
    (one, marked) = ask(["What is it?", "Is <image> or <image> red?"], None, pictures, tokenizer, tiny_llava)
    image = tokenizer.convert_tokens_to_ids("<image>")
    for asked in (one, marked):
        assert asked.tokens.count(image) == sum(picture.num_tokens for picture in asked.pictures) == 32
    assert one.shown == "What is it?"
    assert [picture.digest for picture in one.pictures] == [picture.digest for picture in marked.pictures]
    processor = AutoProcessor.from_pretrained(tiny_llava, backend="pil")
    blocks = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": blocks}], add_generation_prompt=True)
    from PIL import Image

    expected = processor(images=[Image.open(file) for file in pictures], text=text, add_special_tokens=False)
    assert one.tokens == list(expected["input_ids"][0])


def test_a_file_may_hold_rows_with_and_without(tiny_llava, tokenizer, pictures, tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "<image>What?", "images": [pictures[0].name]}, {"prompt": "Hello"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    seen, blind, more = ask(["And?"], file, [], tokenizer, tiny_llava)[1:] + ask(["x"], None, [], tokenizer, tiny_llava)
    assert [len(asked.pictures) for asked in (seen, blind, more)] == [1, 0, 0]


def test_text_alone_is_as_it_was(tiny_llama, tiny_tokenizer, pictures):
    (asked,) = ask(["Hi"], None, [], tiny_tokenizer, tiny_llama(), is_raw=True)
    assert asked.tokens == tiny_tokenizer("Hi")["input_ids"]
    with pytest.raises(ValueError, match=r"--image: .* holds no processor of pictures"):
        ask(["Hi"], None, pictures, tiny_tokenizer, tiny_llama())
    with pytest.raises(ValueError, match="nothing to answer"):
        ask([], None, pictures, tiny_tokenizer, tiny_llama())


def test_the_answer_is_that_of_plain_hugging_face(tiny_llava, tokenizer, pictures, tmp_path):
    out, words = tmp_path / "out.jsonl", ["--prompt", "What is it?", "--image", str(pictures[0])]
    main(["generate", str(tiny_llava), *words, "--temperature", "0", "--max_new_tokens", "6", "--out", str(out)])
    (asked,) = ask(["What is it?"], None, pictures[:1], tokenizer, tiny_llava)
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()
    tokens, pixels = torch.tensor([asked.tokens]), asked.pictures[0].inputs["pixel_values"]
    image = [model.config.image_token_id]
    answer = model.generate(
        input_ids=tokens, pixel_values=pixels, max_new_tokens=6, do_sample=False, suppress_tokens=image
    )[0, tokens.shape[1] :]
    row = json.loads(out.read_text())
    assert (row["prompt"], row["response"]) == (
        "What is it?",
        tokenizer.decode(answer, skip_special_tokens=True).strip(),
    )
