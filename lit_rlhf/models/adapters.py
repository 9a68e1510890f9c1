"""LoRA adapters on a backbone: making them, switching between them, copying, mixing and saving them.

An adapter is known by the name of its role: ``policy``, ``reference``, ``reward``, ``critic``. Roles are switched by
one context manager that puts back what was active, whatever is raised inside, and never changes which parameters
require gradients, so that optimizers and sharding see the same parameters all the time.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import EMBEDDING_LAYER_NAMES, AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_rlhf.models.loading import local_or_hub
from lit_rlhf.models.moe.expert_lora import keep_low_rank
from lit_rlhf.models.moe.targets import linear_targets, target_parameters
from lit_rlhf.models.options import LoraOptions
from lit_rlhf.models.targets import target_modules
from lit_rlhf.models.whole import whole_state
from lit_rlhf.ranks import is_first_rank

POLICY = "policy"
REFERENCE = "reference"
REWARD = "reward"
CRITIC = "critic"
BEGINNING = "beginning"
"""How an adapter began that took its start out of the backbone: what "no change" means from then on."""

MUTATING = ("pissa", "olora")
"""Initialisations that change the backbone's weights: "adapter off" is then no longer the model that was loaded."""


def new_adapter(
    model: PreTrainedModel, options: LoraOptions, name: str = POLICY, *, train_router: bool = False
) -> PeftModel:
    """Put a fresh LoRA adapter on a frozen model.

    Args:
        model: that it goes on.
        options: of the adapter.
        name: of it.
        train_router: whether it goes on the routers of a mixture of experts, too.

    Raises:
        ValueError: if the options do not fit the model.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_parameters=target_parameters(model, options, train_router=train_router),
        r=options.r,
        lora_alpha=cast(int, options.alpha),
        lora_dropout=options.dropout,
        target_modules=linear_targets(model, target_modules(model, options.target_modules)),
        exclude_modules=options.exclude_modules or None,
        modules_to_save=options.modules_to_save or None,
        init_lora_weights=True if options.init == "default" else options.init,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
    )
    try:
        return keep_low_rank(get_peft_model(model, config, adapter_name=name))
    except (ValueError, TypeError) as error:
        raise ValueError(f"backbone.lora does not fit '{model.name_or_path}': {error}") from error


def load_adapter(model: PreTrainedModel, folder: str, dropout: float, name: str = POLICY) -> PeftModel:
    """Put a saved adapter on a frozen model, trainable.

    Heads that were saved with it, such as the score head of a reward model, are left aside.

    Args:
        model: the base it was trained on.
        folder: its folder or hub name.
        dropout: replaces the dropout that it was saved with.
        name: of the adapter here.

    Raises:
        ValueError: if there is no adapter, it is not LoRA, or it belongs to another base.
    """
    config = _saved_config(model, folder, dropout)
    with _fitting(model, folder, config):
        config.base_model_name_or_path = model.name_or_path  # what PEFT looks for when it saves or loads
        adapted = PeftModel.from_pretrained(
            model, local_or_hub(folder), adapter_name=name, is_trainable=True, config=config, use_safetensors=True
        )
        _refuse_other_layers(adapted, set(load_peft_weights(local_or_hub(folder))), name)
    return keep_low_rank(adapted)


def add_adapter(model: PeftModel, folder: str, name: str) -> None:
    """Put one more saved adapter beside those that are there, frozen and without dropout. What is active stays so.

    Args:
        model: holds the other adapters, on the base that this one was trained on too.
        folder: its folder or hub name.
        name: of the adapter here.

    Raises:
        ValueError: if there is no adapter, it is not LoRA, it belongs to another base, or the name is taken.
    """
    if name in model.peft_config:
        raise ValueError(f"there is an adapter named '{name}' already")
    base = cast(PreTrainedModel, model.get_base_model())
    config = _saved_config(base, folder, dropout=0.0)
    active = model.active_adapter
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _fitting(base, folder, config):
        config.base_model_name_or_path = base.name_or_path  # what PEFT looks for when it saves or loads
        model.add_adapter(name, config)
        weights = load_peft_weights(local_or_hub(folder))
        set_peft_model_state_dict(model, weights, adapter_name=name)
        _refuse_other_layers(model, set(weights), name)
    keep_low_rank(model)
    model.set_adapter(active)
    _train_only(model, trainable)


def add_fresh_adapter(model: PeftModel, like: str, name: str) -> None:
    """Put one more adapter beside those that are there, of the shape of ``like``, that changes nothing yet.

    Args:
        model: holds the other adapters. What is active stays so.
        like: name of the adapter whose rank and targets it takes.
        name: of the new one, trainable and without dropout.
    """
    config = deepcopy(cast(LoraConfig, model.peft_config[like]))
    config.init_lora_weights = True
    config.lora_dropout = 0.0
    config.modules_to_save = None
    active = model.active_adapter
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.add_adapter(name, config)
    model.set_adapter(active)
    _train_only(model, trainable)
    train_adapter(model, name)


def train_adapter(model: PeftModel, name: str) -> None:
    """Make the weights of an adapter trainable, beside whatever is trained already; on ``lm_head`` nothing reads them.

    Args:
        model: holds the adapter.
        name: of one that says nothing, such as a critic's.
    """
    unread = {
        id(parameter)
        for parameter in cast(PreTrainedModel, model.get_base_model()).get_output_embeddings().parameters()
    }
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(id(parameter) not in unread)


def adapter_parameters(model: PeftModel, name: str) -> list[nn.Parameter]:
    """The weights of an adapter, in the order of the model."""
    return [parameter for path, parameter in model.named_parameters() if name in path.split(".")]


def _saved_config(model: PreTrainedModel, folder: str, dropout: float) -> LoraConfig:
    """The config of a saved adapter, as it goes onto a causal language model without the heads it was saved with."""
    try:
        config = PeftConfig.from_pretrained(local_or_hub(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"backbone.adapter '{folder}' holds no PEFT adapter (adapter_config.json)") from error
    place = Path(local_or_hub(folder))
    if place.is_dir() and not (place / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ValueError(
            f"backbone.adapter '{folder}' holds no {SAFETENSORS_WEIGHTS_NAME}; weights in a pickle (.bin) are not "
            "loaded, as a pickle can run code: save it anew with PEFT's save_pretrained"
        )
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"backbone.adapter '{folder}' is of type {PeftType(config.peft_type).value}; only LORA is supported"
        )
    config.lora_dropout = dropout
    config.task_type = "CAUSAL_LM"
    config.modules_to_save = [part for part in config.modules_to_save or [] if _has_part(model, part)] or None
    if head := _left_out_head(model):
        own = config.exclude_modules or []
        config.exclude_modules = f"{own}|{head}" if isinstance(own, str) else sorted({*own, head})
    return config


@contextmanager
def _fitting(model: PreTrainedModel, folder: str, config: LoraConfig) -> Iterator[None]:
    """Name the adapter and both bases in whatever PEFT says of an adapter that does not fit."""
    trained_on = config.base_model_name_or_path
    try:
        yield
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise ValueError(
            f"backbone.adapter '{folder}' was trained on '{trained_on}' and does not fit '{model.name_or_path}': "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def _has_part(model: PreTrainedModel, ending: str) -> bool:
    """Whether a module of that name is there and holds weights: an ``lm_head`` that was left out does not."""
    return any(
        name.split(".")[-1] == ending and any(True for _ in part.parameters()) for name, part in model.named_modules()
    )


def _left_out_head(model: PreTrainedModel) -> str | None:
    """Name of an ``lm_head`` that was left out, on which an adapter may have been trained all the same."""
    head = model.get_output_embeddings()
    return next((name for name, part in model.named_modules() if part is head and isinstance(part, nn.Identity)), None)


def _refuse_other_layers(model: PeftModel, saved: set[str], name: str) -> None:
    """PEFT loads what fits and warns of the rest; an adapter of a deeper or shallower model is refused here."""
    own = set(get_peft_model_state_dict(model, adapter_name=name))
    aside = f"base_model.model.{_left_out_head(cast(PreTrainedModel, model.get_base_model()))}."
    odd = sorted(key for key in own ^ saved if ("lora_A" in key or "lora_B" in key) and not key.startswith(aside))
    if odd:
        raise ValueError(f"it {'lacks' if odd[0] in own else 'has weights for a layer that is not there:'} {odd[0]}")


def base_of(folder: Path) -> str:
    """Name of the base model that an adapter was trained on, or its path where that is told from the adapter's folder.

    Raises:
        ValueError: if the folder holds no adapter, or one that does not say.
    """
    try:
        name = str(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no {CONFIG_NAME} that names a base model; name it with base") from error
    return str((folder / name).resolve()) if name.startswith("..") else name


def is_same_base(name: str, model: PreTrainedModel) -> bool:
    """Whether a base that an adapter names is, as far as names tell, the model: folders may lie elsewhere by now."""
    ours, theirs = (re.split(r"[/\\:]", str(path).rstrip("/"))[-1] for path in (model.name_or_path, name))
    return ours == theirs


def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Add adapter ``target``, frozen and without dropout, with the weights of ``source``. ``source`` stays active."""
    config = deepcopy(cast(LoraConfig, model.peft_config[source]))
    config.init_lora_weights = True
    config.lora_dropout = 0.0
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.add_adapter(target, config)
    mix_adapters(model, source, target, weight=1.0)
    model.set_adapter(source)
    _train_only(model, trainable)


def _train_only(model: PeftModel, trainable: list[nn.Parameter]) -> None:
    """Freeze everything else: PEFT makes trainable what becomes active."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)


@torch.no_grad()
def mix_adapters(model: PeftModel, source: str, target: str, weight: float) -> None:
    """``target <- weight * source + (1 - weight) * target``, parameter by parameter.

    Args:
        model: holds both adapters.
        source: name of the adapter that is read.
        target: name of the one that moves.
        weight: 0-1; 1 copies.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parts = name.split(".")
        if target in parts:
            twin = parameters[".".join(source if part == target else part for part in parts)]
            parameter.lerp_(twin.to(parameter.dtype), weight)


@contextmanager
def active_adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Run with one adapter on, or with none.

    Args:
        model: holds the adapters.
        name: of the adapter; None switches all off.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def refuse_learned_prompt(model: PeftModel) -> None:
    """Refuse PEFT methods that put tokens before the text: a forest has no place for them.

    Raises:
        ValueError: naming the method.
    """
    config = model.active_peft_config
    if config.is_prompt_learning:
        raise ValueError(f"the adapter is of type {PeftType(config.peft_type).value}, which adds tokens; use LoRA")


def is_fresh(model: PeftModel, name: str) -> bool:
    """Whether the adapter still computes no change: every LoRA B is zero and nothing is trained whole beside it."""
    ours = [(path, parameter) for path, parameter in model.named_parameters() if name in path.split(".")]
    return all("lora_A" in path or ("lora_B" in path and not parameter.any()) for path, parameter in ours)


def save_adapter(model: PeftModel, name: str, folder: Path) -> None:
    """Write an adapter as PEFT writes it, so that it loads on the plain base.

    An adapter that began by changing the backbone ("pissa", "olora") is written as the difference to its beginning,
    an ordinary LoRA of twice the rank.

    Args:
        model: holds the adapter, and its beginning where that changed the backbone.
        name: of the adapter.
        folder: is made if need be; files of an earlier adapter are replaced. All ranks call this, and the first writes.
    """
    state = whole_state(_saved_tensors(model, name))
    beginning = whole_state(_saved_tensors(model, BEGINNING)) if BEGINNING in model.peft_config else {}
    if not is_first_rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model.save_pretrained(scratch, selected_adapters=[name], state_dict=state)
        written = Path(scratch) if name == "default" else Path(scratch) / name
        if beginning:
            began = get_peft_model_state_dict(model, state_dict=beginning, adapter_name=BEGINNING)
            _subtract_beginning(began, written)
        for file in written.iterdir():
            if file.is_file():
                file.replace(folder / file.name)


def _saved_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    """What PEFT may write of an adapter: its own tensors, and the embeddings that it was put on."""
    wanted = {name, *EMBEDDING_LAYER_NAMES}
    return {path: tensor for path, tensor in model.state_dict().items() if wanted & set(path.split("."))}


def _subtract_beginning(beginning: Mapping[str, Tensor], folder: Path) -> None:
    """Rewrite a saved adapter B A as [B, -B0] [A; A0], the change since its beginning B0 A0."""
    weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    for name, weight in weights.items():
        if "lora_A" in name:
            weights[name] = torch.cat([weight, beginning[name].cpu()], dim=0)
        elif "lora_B" in name:
            weights[name] = torch.cat([weight, -beginning[name].cpu()], dim=1)
    save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
    config = LoraConfig.from_pretrained(str(folder))
    config.init_lora_weights = True
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2  # the scale stays what it was
    config.r *= 2
    config.save_pretrained(str(folder))
