"""LLaVAs with random weights: a Llama of ``proxy_model.py`` beside a tower, and a processor without torchvision.

A tower is a small or a large share of the work. "light" is the share that it has in LLaVA 1.5 7B, about 4 % of what the
decoder does in a forward pass; "heavy" that of Qwen2-VL 2B, where a tower of 0.7 billion parameters reads four patches
for each token of a picture: about twice what the decoder does. Parameters times tokens, of 196 patches and some 35
tokens of text.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from proxy_model import ARCHITECTURES, train_tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


class Tower(NamedTuple):
    """Sizes of a CLIP: its MLP is four times as wide, and a picture is ``side`` x ``side`` pixels in patches."""

    hidden: int
    layers: int
    heads: int
    side: int
    patch: int


TOWERS = {
    "tiny": {"light": Tower(32, 2, 4, 32, 8)},
    "small": {"light": Tower(64, 3, 4, 112, 8), "heavy": Tower(256, 9, 4, 112, 8)},
    "reference": {"light": Tower(1024, 24, 16, 336, 14), "heavy": Tower(2048, 44, 16, 336, 14)},
}
"""By architecture of the decoder, and by share of the work."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<image>\n{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def make_processor(texts: list[str], tower: Tower) -> LlavaProcessor:
    """Pictures cut out of the middle, and a tokenizer trained on texts."""
    tokenizer = train_tokenizer(texts)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(
        size={"shortest_edge": tower.side}, crop_size={"height": tower.side, "width": tower.side}
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=tower.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def make_llava(
    arch: str,
    share: str,
    texts: list[str],
    folder: Path,
    dtype: str = "float32",
    device: str = "cpu",
    std: float = 0.02,
) -> None:
    """Write a model and its processor.

    Args:
        arch: of the decoder.
        share: of the tower, in ``TOWERS``.
        texts: to train the tokenizer on.
        folder: to write into.
        dtype: of the weights.
        device: to make them on.
        std: of the weights; the larger, the more a picture says.
    """
    tower = TOWERS[arch][share]
    processor = make_processor(texts, tower)
    hidden, layers, heads, mlp, vocabulary = ARCHITECTURES[arch]
    text = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        vocab_size=max(vocabulary, len(processor.tokenizer)),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = CLIPVisionConfig(
        hidden_size=tower.hidden,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        intermediate_size=4 * tower.hidden,
        image_size=tower.side,
        patch_size=tower.patch,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        dtype=dtype,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
