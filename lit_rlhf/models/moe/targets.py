"""Which weights of a mixture of experts LoRA goes on.

PEFT takes "all-linear" of such a model for every weight that was a linear layer in older versions of transformers: the
router and all experts, in twice the rank that was asked for. Here it means what it means everywhere: the layers that
are linear. Routers stay as they are unless they are asked for, and so do stacked experts.
"""

from __future__ import annotations

from copy import deepcopy

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel

from lit_rlhf.models.moe.four_bit import expert_parameters
from lit_rlhf.models.moe.routers import find_routers, require_routers
from lit_rlhf.models.options import LoraOptions

_ON_PARAMETERS = ("default", "gaussian")
"""Starts of an adapter that a stack of weights can have."""


def linear_targets(model: PreTrainedModel, modules: str | list[str]) -> str | list[str]:
    """The ``target_modules`` of an adapter: as they were given, but "all-linear" of a mixture by names of layers.

    Args:
        model: that the adapter goes on.
        modules: as in :class:`lit_rlhf.models.options.LoraOptions`.
    """
    is_mixture = bool(find_routers(model) or expert_parameters(model))
    return _linear_layers(model) if modules == "all-linear" and is_mixture else modules


def target_parameters(model: PreTrainedModel, options: LoraOptions, *, train_router: bool = False) -> list[str] | None:
    """The ``target_parameters`` of an adapter: endings of the names of the weights of experts and routers.

    Args:
        model: that the adapter goes on.
        options: of the adapter.
        train_router: whether it goes on routers.

    Raises:
        ValueError: if experts or routers are asked for that are not there, or by an adapter that they cannot have.
    """
    found: set[str] = set()
    if options.target_experts:
        paths = {module: path for path, module in model.named_modules()}
        found |= {_ending(f"{paths[module]}.{name}") for module, name in expert_parameters(model)}
        if not found:
            raise ValueError(
                f"lora.target_experts is set, and '{model.config.model_type}' has no experts in stacked weights"
            )
        _check_start(options, "lora.target_experts")
    if train_router:
        found |= {_ending(f"{router.name}.weight") for router in require_routers(model, "backbone.train_router")}
        _check_start(options, "backbone.train_router")
    return sorted(found) or None


def _ending(path: str) -> str:
    """The last three parts of a name: enough to tell experts from other weights, the same in every layer."""
    return ".".join(path.split(".")[-3:])


def _check_start(options: LoraOptions, key: str) -> None:
    if options.dropout:
        raise ValueError(
            f"{key} is set and lora.dropout is {options.dropout}: an adapter on weights that are no layer of their own "
            "has no input to drop; set lora.dropout to 0"
        )
    if options.use_dora or options.init not in _ON_PARAMETERS:
        raise ValueError(
            f"{key} is set, with lora.init '{options.init}' and lora.use_dora={options.use_dora}; such an adapter "
            f"begins as one of {', '.join(_ON_PARAMETERS)}, without DoRA"
        )


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers, without head and routers, and without those that PEFT takes for experts."""
    others = [model.get_output_embeddings(), *(router.module for router in find_routers(model))]
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(module is other for other in others)
    ]
    # PEFT renames layers by their endings, and would put the adapter of a shared expert on all experts instead.
    config = LoraConfig(target_modules=deepcopy(names))
    convert_peft_config_for_transformers(config, model, None)
    return [name for name in names if name in set(config.target_modules or [])]
