"""The language-model head: its weight as it counts right now, and what the model does to the logits after it."""

from __future__ import annotations

from typing import Any, cast

import bitsandbytes
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_rlhf.models.layers.linear_logprobs import LogitTransform
from lit_rlhf.models.layers.lora_linear import quant_state_of


def head_parameters(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Weight (V, H) and bias (V,) or None of ``lm_head`` under the adapters that are active.

    A LoRA on the head is added to its weight, and a copy of the head that is trained whole (``modules_to_save``) takes
    the place of the original, so that the log-probability primitive need know neither.

    Raises:
        ValueError: if the head is no linear layer, or has a DoRA adapter.
    """
    return _linear_parameters(model.get_output_embeddings())


def _linear_parameters(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    if isinstance(head, ModulesToSaveWrapper):
        active = None if head.disable_adapters else head.active_adapters[0]
        return _linear_parameters(head.original_module if active is None else head.modules_to_save[active])
    if isinstance(head, LoraLayer):
        weight, bias = _linear_parameters(head.get_base_layer())
        if not head.disable_adapters:
            for name in head.active_adapters:
                if name in head.lora_variant:
                    raise ValueError("the output head has a DoRA adapter, which is no sum of weights; use plain LoRA")
                weight = weight + cast(Any, head).get_delta_weight(name).to(weight.dtype)
        return weight, bias
    if isinstance(head, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(head.weight.data, quant_state_of(head)), head.bias
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the output head is a {type(head).__name__}; a linear layer is needed")
    return head.weight, head.bias


@torch.no_grad()
def logit_transform(config: PretrainedConfig, raw: Tensor, logits: Tensor) -> LogitTransform:
    """Find out what a model does to its logits, by trying what its config names.

    Args:
        config: of the model.
        raw: (N, V) ``lm_head`` applied to the last hidden states.
        logits: (N, V) what the model itself returns for the same tokens.

    Raises:
        ValueError: if none of the known transforms turns ``raw`` into ``logits``.
    """
    values = config.get_text_config().to_dict()
    softcap = float(values.get("final_logit_softcapping") or 0.0)
    scales = [1.0]
    for name in ("logit_scale", "lm_head_multiplier", "logits_scaling"):
        if values.get(name):
            scales += [float(values[name]), 1.0 / float(values[name])]
    tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
    for scale in scales:
        transform = LogitTransform(scale=scale, softcap=softcap)
        if (transform(raw) - logits.float()).norm() <= tolerance * logits.float().norm():
            return transform
    raise ValueError(
        f"cannot reproduce the logits of a {config.model_type} model from its last hidden states and lm_head: "
        "it does something to them that lit_rlhf does not know"
    )
