"""A model without its numbers: made on torch's device ``meta`` from a configuration alone, and counted.

No weights are read, so a model of any size is made in seconds. What is counted are the tensors that training will hold,
whatever the family is called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from lit_rlhf.models import adapters
from lit_rlhf.models.layers.fused import fuse
from lit_rlhf.models.loading import name_decoder
from lit_rlhf.models.moe.four_bit import expert_parameters
from lit_rlhf.models.options import LoraOptions
from lit_rlhf.models.vision import is_seeing, parts_beside_decoder

BLOCK, NESTED_BLOCK = 64, 256
"""Numbers that share a scale in NF4, and scales that share one of theirs (double quantisation)."""
TABLES = 4 * (16 + 256 + 1)
"""Bytes of what each NF4 layer has once: the 16 values, the 256 of its scales, and their mean."""


class Anatomy(NamedTuple):
    """A model in counts.

    Args:
        model: on the device ``meta``, without adapters.
        dtype: of its numbers.
        layers: decoder layers.
        is_fused: whether this package's own functions compute them.
        num_quantised: numbers of the layers that are quantised, where that is asked for.
        num_experts: numbers of experts, of which a token passes only some.
        expert_share: share of them that a token passes.
        num_head: numbers of ``lm_head``.
        num_embedding: numbers of the embedding.
        num_tower: numbers of what looks at pictures.
        num_all: numbers of all.
    """

    model: PreTrainedModel
    dtype: torch.dtype
    layers: nn.ModuleList
    is_fused: bool
    num_quantised: int
    num_experts: int
    expert_share: float
    num_head: int
    num_embedding: int
    num_tower: int
    num_all: int

    @property
    def hidden(self) -> int:
        """H."""
        return cast(Tensor, self.model.get_input_embeddings().weight).shape[1]

    @property
    def vocabulary(self) -> int:
        """V."""
        return cast(Tensor, self.model.get_input_embeddings().weight).shape[0]

    @property
    def text_config(self) -> PretrainedConfig:
        """Of the decoder."""
        return self.model.config.get_text_config()

    @property
    def num_active(self) -> float:
        """Numbers of matrices that a token passes in the decoder layers."""
        matrices = sum(tensor.numel() for tensor in self.layers.parameters() if tensor.ndim > 1)
        return matrices - self.num_experts * (1.0 - self.expert_share)


def blank_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a configuration, on the device ``meta``.

    Raises:
        ValueError: if transformers knows no model of that kind.
    """
    is_capped = config.get_text_config().to_dict().get("attn_logit_softcapping")
    attention = "eager" if is_capped else None  # as it is loaded
    kind: Any = AutoModelForImageTextToText if is_seeing(config) else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = cast(
                PreTrainedModel, kind.from_config(deepcopy(config), dtype=dtype, attn_implementation=attention)
            )
    except (ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"model_type '{config.model_type}' cannot be estimated: {reason}") from None
    name_decoder(model)
    return model


def anatomy(config: PretrainedConfig, dtype: str = "auto") -> Anatomy:
    """Count a model.

    Args:
        config: of it.
        dtype: of its numbers; "auto" = that of the configuration.

    Raises:
        ValueError: if it cannot be made, or has no decoder layers.
    """
    kind = numbers_of(config, dtype)
    key = config.to_json_string(use_diff=False), kind
    if key not in _COUNTED:
        _COUNTED[key] = _count(blank_model(config, kind), kind)
    return _COUNTED[key]


_COUNTED: dict[tuple[str, torch.dtype], Anatomy] = {}


def _count(model: PreTrainedModel, kind: torch.dtype) -> Anatomy:
    layers = decoder_layers(model)
    head = model.get_output_embeddings()
    tower = parts_beside_decoder(model).values() if is_seeing(model.config) else ()
    experts = [p for layer in layers for p in _experts(layer)]
    return Anatomy(
        model,
        kind,
        layers,
        is_fused=fuse(model) == len(layers),
        num_quantised=sum(weight.numel() for weight in quantised(model)),
        num_experts=sum(p.numel() for p in experts),
        expert_share=_expert_share(model.config.get_text_config().to_dict()),
        num_head=0 if head is None else sum(p.numel() for p in head.parameters()),
        num_embedding=sum(p.numel() for p in model.get_input_embeddings().parameters()),
        num_tower=sum(p.numel() for part in tower for p in part.parameters()),
        num_all=sum(p.numel() for p in model.parameters()),
    )


def numbers_of(config: PretrainedConfig, dtype: str) -> torch.dtype:
    """The type of a model's numbers."""
    said = config.to_dict().get("dtype") or config.get_text_config().to_dict().get("dtype")
    name = dtype if dtype != "auto" else str(said or "float32").removeprefix("torch.")
    return cast(torch.dtype, vars(torch)[name])


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers.

    Raises:
        ValueError: if there is none as long as the configuration says.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = (part for part in model.get_decoder().modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    layers = next(found, None)
    if layers is None:
        raise ValueError(f"model_type '{model.config.model_type}' has no list of {count} decoder layers to count")
    return layers


def base_bytes(found: Anatomy, quantization: str, *, with_lm_head: bool = True) -> int:
    """Bytes of the base: half a byte per number in NF4, one in int8, and its own type for all that is not quantised."""
    tensors = _unique([*found.model.parameters(), *found.model.buffers()])
    total = sum(tensor.nbytes for tensor in tensors)
    if quantization != "none":
        size = nf4_bytes if quantization == "nf4" else int8_bytes
        total -= sum(weight.nbytes - size(weight) for weight in quantised(found.model))
    if quantization == "nf4":
        stacks = [cast(Tensor, vars(module)["_parameters"][name]) for module, name in expert_parameters(found.model)]
        total -= sum(stack.nbytes - stacked_nf4_bytes(stack) for stack in stacks)
    tied = found.model.get_output_embeddings() is None or (
        found.model.get_output_embeddings().weight is found.model.get_input_embeddings().weight
    )
    return total - (0 if with_lm_head or tied else found.num_head * found.dtype.itemsize)


def quantised(model: PreTrainedModel) -> Iterator[Tensor]:
    """Weights that are quantised: those of all linear layers but ``lm_head``, outside of what looks at pictures."""
    aside = {model.get_output_embeddings()}
    if is_seeing(model.config):
        aside.update(layer for part in parts_beside_decoder(model).values() for layer in part.modules())
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer not in aside:
            yield layer.weight


def nf4_bytes(weight: Tensor) -> int:
    """Half a byte per number, a byte per block's scale, four per scale of scales, and the tables."""
    blocks = math.ceil(weight.numel() / BLOCK)
    return math.ceil(weight.numel() / 2) + blocks + 4 * math.ceil(blocks / NESTED_BLOCK) + TABLES


def stacked_nf4_bytes(stack: Tensor) -> int:
    """The same of experts in one tensor (E, O, I): each in whole blocks, with a mean of its own and no tables."""
    blocks = math.ceil(stack[0].numel() / BLOCK)
    return len(stack) * (blocks * (BLOCK // 2 + 1) + 4 * math.ceil(blocks / NESTED_BLOCK) + 4)


def int8_bytes(weight: Tensor) -> int:
    """A byte per number, and four per row for its scale."""
    return weight.numel() + 4 * weight.shape[0]


def adapter_tensors(found: Anatomy, options: LoraOptions) -> list[Tensor]:
    """The tensors that an adapter of these options has, as PEFT makes them.

    Raises:
        ValueError: if the options do not fit the model.
    """
    key = found.model.config.to_json_string(use_diff=False), found.dtype, repr(options)
    if key not in _ADAPTED:
        model = blank_model(found.model.config, found.dtype).requires_grad_(False)
        with torch.device("meta"):
            adapted = adapters.new_adapter(model, options)
        _ADAPTED[key] = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return _ADAPTED[key]


_ADAPTED: dict[tuple[str, torch.dtype, str], list[Tensor]] = {}


def cache_bytes(found: Anatomy) -> int:
    """Bytes that a token takes in the sampler's cache: a key and a value per layer and head of keys."""
    config, said = found.text_config, found.text_config.to_dict()
    if said.get("kv_lora_rank"):  # latent attention gives every head keys and values of its own
        sizes = said["qk_nope_head_dim"] + said["qk_rope_head_dim"] + said["v_head_dim"]
        return len(found.layers) * config.num_attention_heads * sizes * found.dtype.itemsize
    heads = said.get("num_key_value_heads") or config.num_attention_heads
    size = said.get("head_dim") or config.hidden_size // config.num_attention_heads
    return 2 * len(found.layers) * heads * size * found.dtype.itemsize


def _unique(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _experts(layer: nn.Module) -> Iterator[Tensor]:
    """Weights of the experts of a layer that a router chooses between."""
    for name, parameter in layer.named_parameters():
        if "experts" in name.split(".") and "shared_experts" not in name:
            yield parameter


def _expert_share(config: dict[str, Any]) -> float:
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    count = next((config[name] for name in names if config.get(name)), 0)
    used = next((config[name] for name in ("num_experts_per_tok", "moe_k", "moe_top_k") if config.get(name)), 1)
    return used / count if count else 1.0
