"""A picture made of nothing, of the size that a config names, to try a model with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches


def sample_inputs(config: PretrainedConfig, signature: inspect.Signature) -> Mapping[str, Tensor]:
    """What a tower takes for one picture.

    Args:
        config: of the model.
        signature: of what takes it.

    Raises:
        ValueError: if the config names no size that is known here.
    """
    values = config.vision_config.to_dict()
    names = signature.parameters
    if "image_grid_thw" in names:
        merge, patch = values["spatial_merge_size"], values["patch_size"]
        width = values.get("in_channels", 3) * values.get("temporal_patch_size", 1) * patch**2
        grid = torch.tensor([[1, 2 * merge, 3 * merge]])
        return {"pixel_values": _ramp(int(grid.prod()), width), "image_grid_thw": grid}
    side = values.get("image_size")
    if isinstance(side, list | tuple):
        side = side[0]
    if not side:
        raise ValueError(f"the config of a {config.model_type} model names no size of pictures")
    shape = values.get("num_channels", 3), side, side
    if "aspect_ratio_ids" in names:  # the first of its tiles, of the first aspect ratio, and tiles that fill it up
        mask = torch.arange(values["max_num_tiles"])[None, None] < 1
        pixels = _ramp(1, 1, values["max_num_tiles"], *shape) * mask[..., None, None, None]
        return {"pixel_values": pixels, "aspect_ratio_ids": torch.ones(1, 1).long(), "aspect_ratio_mask": mask.long()}
    size = torch.tensor([[side, side]])
    if tiles := config.to_dict().get("image_grid_pinpoints"):  # a picture of one tile size: it, and the tiles of it
        num_tiles = image_size_to_num_patches(size[0].tolist(), tiles, side)
        return {"pixel_values": _ramp(1, num_tiles, *shape), "image_sizes": size}
    return {"pixel_values": _ramp(1, *shape)} | ({"image_sizes": size} if "image_sizes" in names else {})


def _ramp(*shape: int) -> Tensor:
    """Numbers between -1 and 1, each different."""
    return torch.linspace(-1.0, 1.0, int(torch.tensor(shape).prod())).reshape(shape)
