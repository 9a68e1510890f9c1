"""Folders of tiny random models that look at pictures: weights, tokenizer, chat template and processor, no network.

``make_llava(folder)`` builds a LLaVA (CLIP of two layers, Llama of two layers), ``make_qwen2_vl(folder)`` a Qwen2-VL,
``make_mllama(folder)`` a Llama 3.2 Vision; all take further keys for the configuration of the language model.
``draw(file, size, colour)`` writes a picture. None needs torchvision: pictures are prepared by PIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "What colour is the square in the picture? The square in the picture is red.",
    "How many circles are there? There are two blue circles and one yellow triangle.",
)

LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<image>{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_llava(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Build a LLaVA for pictures of 32 x 32 in patches of 8: 16 image tokens each.

    Args:
        folder: to build it in; made if need be.
        seed: of the weights.
        changes: keys of its ``LlamaConfig``.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = make_tokenizer(["<image>", "<|system|>", "<|user|>", "<|assistant|>"], "</s>", LLAVA_TEMPLATE)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**{**_text_keys(tokenizer), **changes}),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    return _saved(LlavaForConditionalGeneration, config, processor, folder, seed)


def make_qwen2_vl(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Build a Qwen2-VL for patches of 4 that are merged by twos: a picture of 16 x 24 is 6 image tokens.

    Args:
        folder: to build it in; made if need be.
        seed: of the weights.
        changes: keys of its text configuration.
    """
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = make_tokenizer(special, "<|im_end|>", QWEN_TEMPLATE)
    number = tokenizer.convert_tokens_to_ids
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        vision_config=vision | {"spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
        text_config={**_text_keys(tokenizer), "rope_parameters": rope, **changes},
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    tokenizer.save_pretrained(folder)
    return _saved(Qwen2VLForConditionalGeneration, config, images, folder, seed)


def make_mllama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Build a Llama 3.2 Vision for up to two tiles of 32 x 32 in patches of 8: one image token for each picture.

    Args:
        folder: to build it in; made if need be.
        seed: of the weights.
        changes: keys of its text configuration.
    """
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    template = LLAVA_TEMPLATE.replace("<image>", "<|image|>")
    tokenizer = make_tokenizer(["<|system|>", "<|user|>", "<|assistant|>"], "</s>", template)
    text = {**_text_keys(tokenizer), "num_hidden_layers": 3, "cross_attention_layers": [1], **changes}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})  # behind what the head can say
    images = MllamaImageProcessorPil(size={"height": 32, "width": 32}, max_image_tiles=2)
    processor = MllamaProcessor(images, tokenizer, chat_template=template)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_global_layers": 1}
    vision |= {"attention_heads": 4, "image_size": 32, "patch_size": 8, "vision_output_dim": 64, "max_num_tiles": 2}
    vision |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    config = MllamaConfig(
        vision_config=vision,
        text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    return _saved(MllamaForConditionalGeneration, config, processor, folder, seed)


def make_tokenizer(special: Sequence[str], eos: str, chat_template: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 320 tokens that adds <s> before a text.

    Args:
        special: further special tokens.
        eos: the one that ends a text.
        chat_template: Jinja.
    """
    tokens = list(dict.fromkeys(["<pad>", "<s>", "</s>", *special]))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=320, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokens.index("<s>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token=eos, pad_token="<pad>", model_max_length=512
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def draw(file: Path, size: tuple[int, int] = (40, 30), colour: str = "red", **options: Any) -> Path:
    """Write a picture of one colour.

    Args:
        file: its suffix says how it is written.
        size: width and height in pixels.
        colour: any that PIL knows.
        options: for ``Image.save``.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file, **options)
    return file


def _text_keys(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(str(tokenizer.special_tokens_map[f"{name}_token"]))
        for name in ("pad", "bos", "eos")
    }
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return {"vocab_size": len(tokenizer), **sizes, **heads, "max_position_embeddings": 512, **ids}


def _saved(model: Any, config: Any, processor: Any, folder: Path, seed: int) -> Path:
    """Write processor and random weights, large enough that pictures make a difference."""
    processor.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = model(config)
        for parameter in built.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        for name, parameter in built.named_parameters():
            if parameter.ndim == 1 and "gate" in name:  # at the start those of Llama 3.2 Vision shut pictures out
                torch.nn.init.constant_(parameter, 0.7)
        built.save_pretrained(folder)
    return folder
