"""Pictures for the tiny models of ``tiny_vision.py`` without a processor, forests that hold them, and more such models.

``picture_for(model, seed)`` is a picture of random numbers as the tower takes it, of a size that depends on the seed;
``seeing_forest(model)`` a forest of trees with one picture that two responses share, three pictures, and none.
``make_seeing(kind, folder)`` writes a random model of a kind; ``row_logits(model, forest)`` is the oracle: each
sequence as one row of its own through the model's own forward.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from lit_rlhf.types import Forest, Picture, Segment
from tests.tiny_vision import make_llava, make_qwen2_vl, make_tokenizer

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
TEXT = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
TEXT |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MARKS = {"vision_start_token_id": 5, "vision_end_token_id": 6, "image_token_id": 7, "video_token_id": 8}
EYES = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def make_seeing(kind: str, folder: Path) -> Path:
    """Write a random model of a kind that reads pictures, a key of ``_MAKERS``."""
    return _MAKERS[kind](folder)


def picture_for(model: Any, seed: int) -> Picture:
    """A picture of random numbers: 32 x 32 pixels, or patches of 2 x 2, 2 x 3 or 3 x 2 image tokens."""
    numbers = torch.Generator().manual_seed(seed)
    config = model.config
    if config.model_type == "mllama":  # one tile and one that fills it up, or two, beside or above one another
        is_tile = torch.tensor([[[1, int(seed % 3 > 0)]]])
        pixels = torch.randn(1, 1, 2, 3, 32, 32, generator=numbers) * is_tile[..., None, None, None]
        ratio = torch.tensor([[1 + seed % 3]])
        inputs = {"pixel_values": pixels, "aspect_ratio_ids": ratio, "aspect_ratio_mask": is_tile}
        return Picture(inputs, 1, f"{seed}")
    if "spatial_merge_size" not in config.vision_config.to_dict():
        inputs = {"pixel_values": torch.randn(1, 3, 32, 32, generator=numbers)}
        if config.model_type == "llava_next":  # of 32 x 64 or 64 x 64 pixels: the whole, and its tiles
            tiles, size = ((3, [30, 60]), (5, [64, 60]))[seed % 2]
            inputs = {"pixel_values": torch.randn(1, tiles, 3, 32, 32, generator=numbers)}
            inputs["image_sizes"] = torch.tensor([size])
        if config.model_type == "mistral3":
            inputs["image_sizes"] = torch.tensor([[32, 32]])
        if config.model_type == "llama4":
            return Picture(inputs, 4, f"{seed}")
        with torch.no_grad():
            found = model.get_image_features(**inputs).pooler_output
        rows = [found.flatten(0, -2)] if isinstance(found, Tensor) else [piece.flatten(0, -2) for piece in found]
        return Picture(inputs, sum(map(len, rows)), f"{seed}")
    height, width = ((2, 2), (2, 3), (3, 2))[seed % 3]
    pixels = torch.randn(4 * height * width, 3 * 2 * 16, generator=numbers)
    grid = torch.tensor([[1, 2 * height, 2 * width]])
    return Picture({"pixel_values": pixels, "image_grid_thw": grid}, height * width, f"{seed}")


def image_run(model: Any, picture: Picture) -> list[int]:
    """The image tokens of a picture, between marks where the model has some."""
    marks = model.config.to_dict()
    begin, end = ([marks[name]] if name in marks else [] for name in ("vision_start_token_id", "vision_end_token_id"))
    return [*begin, *[model.config.image_token_id] * picture.num_tokens, *end]


def seeing_segment(model: Any, seeds: tuple[int, ...], start: int = 40, scored: bool = False) -> Segment:
    """Text with pictures among it, as the root of a tree."""
    pictures = tuple(picture_for(model, seed) for seed in seeds)
    tokens = [start, start + 1]
    for number, picture in enumerate(pictures):
        tokens += [*image_run(model, picture), start + 2 + number]
    tokens += [start + 9, start + 3]
    return Segment(tokens, [False] * (len(tokens) - 2) + [scored, scored], -1, pictures)


def seeing_forest(model: Any) -> Forest:
    """One picture that two responses share; three pictures; a text without; a text whose end is scored."""

    def response(start: int, length: int) -> Segment:
        return Segment([start + 7 * at % 90 for at in range(length)], [True] * length, 0)

    return Forest.pack(
        [
            [seeing_segment(model, (0,)), response(100, 5), response(200, 9)],
            [seeing_segment(model, (1, 2, 0), 60), response(150, 3), response(130, 6)],
            [Segment([50, 51, 52], [False] * 3), response(110, 4)],
            [seeing_segment(model, (2,), 80, scored=True)],
        ]
    )


def row_logits(model: Any, tokens: list[int], pictures: tuple[Picture, ...]) -> Tensor:
    """(T, V) of one row by the model's own forward."""
    ids = torch.tensor([tokens])
    inputs: dict[str, Tensor] = {}
    if pictures and model.config.model_type == "mllama":
        inputs = _as_mllama_processor(model, tokens, pictures)
    elif pictures:
        most = max(one.inputs["pixel_values"].shape[1] for one in pictures)
        inputs = {
            name: torch.cat([one.inputs[name] for one in pictures]) for name in pictures[0].inputs if "ixel" not in name
        }
        pixels = [one.inputs["pixel_values"] for one in pictures]
        if pixels[0].ndim == 5:
            pixels = [torch.cat([x, x.new_zeros(1, most - x.shape[1], *x.shape[2:])], 1) for x in pixels]
        inputs["pixel_values"] = torch.cat(pixels)
        kinds = (ids == model.config.image_token_id).int()
        kind = "token_type_ids" if model.config.model_type == "gemma3" else "mm_token_type_ids"
        inputs |= {kind: kinds} if kind in inspect.signature(model.forward).parameters else {}
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits[0].float()


def _as_mllama_processor(model: Any, tokens: list[int], pictures: tuple[Picture, ...]) -> dict[str, Tensor]:
    """What the processor of transformers makes of one row."""
    inputs = {name: torch.cat([one.inputs[name] for one in pictures], 1) for name in pictures[0].inputs}
    tiles = inputs["aspect_ratio_mask"][0].sum(-1).tolist()
    spans = get_cross_attention_token_mask(tokens, model.config.image_token_id)
    mask = convert_sparse_cross_attention_mask_to_dense([spans], [tiles], 2, len(tokens))
    return {**inputs, "cross_attention_mask": torch.from_numpy(mask)}


def row_logprobs(model: Any, forest: Forest) -> Tensor:
    """(N,) log-probabilities of the scored tokens of a forest, each sequence as one row of its own."""
    scored, found = set(forest.targets.tolist()), []
    for leaf in forest.leaves:
        spans = [range(forest.starts[part], forest.starts[part] + forest.lengths[part]) for part in forest.path(leaf)]
        index = [at for span in spans for at in span]
        row = forest.tokens[index].tolist()
        logprobs = torch.log_softmax(row_logits(model, row, forest.seen_in(leaf)), dim=-1)
        found += [logprobs[at - 1, row[at]] for at, place in enumerate(index) if place in scored]
    return torch.stack(found)


def _save(model: type, config: Any, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = model(config)
        for parameter in built.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        for name, parameter in built.named_parameters():
            if parameter.ndim == 1 and "gate" in name:  # at the start those of Llama 3.2 Vision shut pictures out
                torch.nn.init.constant_(parameter, 0.7)
        built.save_pretrained(folder)
    make_tokenizer(["<a>", "<b>", "<i>", "<j>", "<image>"], "</s>", "").save_pretrained(folder)
    return folder


def _qwen2_5_vl(folder: Path) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    eyes = {**EYES, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "in_channels": 3}
    eyes |= {"window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=eyes, **MARKS)
    return _save(Qwen2_5_VLForConditionalGeneration, config, folder)


def _qwen3_vl(folder: Path) -> Path:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    eyes = {**EYES, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "in_channels": 3}
    eyes |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = {**TEXT, "head_dim": 16, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    return _save(Qwen3VLForConditionalGeneration, Qwen3VLConfig(text_config=text, vision_config=eyes, **MARKS), folder)


def _gemma3(folder: Path) -> Path:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**TEXT, "head_dim": 16, "sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"] * 2}
    config = Gemma3Config(
        text_config=text,
        vision_config=eyes | {"image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
        image_token_index=7,
        boi_token_index=5,
        eoi_token_index=6,
    )
    return _save(Gemma3ForConditionalGeneration, config, folder)


CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP |= {"image_size": 32, "patch_size": 8}


def _llava_next(folder: Path) -> Path:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(**CLIP),
        image_token_index=7,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        image_seq_length=16,
    )
    return _save(LlavaNextForConditionalGeneration, config, folder)


def _mistral3(folder: Path) -> Path:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    config = Mistral3Config(
        text_config=MistralConfig(**TEXT),
        vision_config=PixtralVisionConfig(**CLIP, head_dim=8),
        image_token_index=7,
        spatial_merge_size=2,
    )
    return _save(Mistral3ForConditionalGeneration, config, folder)


def _internvl(folder: Path) -> Path:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

    eyes = {**CLIP, "image_size": [32, 32], "patch_size": [8, 8]}
    config = InternVLConfig(
        text_config=Qwen2Config(**TEXT), vision_config=eyes, image_token_id=7, downsample_ratio=0.5, image_seq_length=4
    )
    return _save(InternVLForConditionalGeneration, config, folder)


def _mllama(folder: Path) -> Path:
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_global_layers": 1}
    eyes |= {"attention_heads": 4, "image_size": 32, "patch_size": 8, "vision_output_dim": 64, "max_num_tiles": 2}
    eyes |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    text = {**TEXT, "cross_attention_layers": [1, 3], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config = MllamaConfig(text_config=text, vision_config=eyes, image_token_index=TEXT["vocab_size"])
    return _save(MllamaForConditionalGeneration, config, folder)


def _llama4(folder: Path) -> Path:
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    eyes = {**CLIP, "hidden_act": "gelu", "vision_output_dim": 48, "pixel_shuffle_ratio": 0.5}
    eyes |= {"projector_input_dim": 48, "projector_output_dim": 48, "intermediate_size": 128}
    text = {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 96, "head_dim": 16}
    config = Llama4Config(text_config=text, vision_config=eyes, image_token_index=7)
    return _save(Llama4ForConditionalGeneration, config, folder)


_MAKERS = {
    "llava": make_llava,
    "qwen2_vl": make_qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_next": _llava_next,
    "mistral3": _mistral3,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "mllama": _mllama,
    "llama4": _llama4,
}
