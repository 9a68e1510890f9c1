"""Which parts of our models are sharded together (FSDP2).

A unit is gathered from all ranks when it computes, and parted again afterwards:

- each decoder layer, with all adapters on it;
- a reference model's embeddings, last norm and ``lm_head``;
- a backbone: its embeddings, last norm and ``lm_head``, whose weight the log-probability primitive reads outside of a
  module of its own, so that the whole backbone is the root that stays gathered until the backward pass is over; and the
  tower of a model that reads pictures, as ranks have different numbers of them and must not wait for each other;
- a trained score or value head, so that its gradients are averaged over ranks like all others.

Frozen and 4-bit weights are sharded like trained ones. What 4-bit weights are packed by stays whole: about a tenth of
them, a thirtieth where that is quantised once more.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import bitsandbytes
import torch
from lightning.pytorch import LightningModule
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.heads.score_head import ScoreHead
from lit_rlhf.models.heads.value_head import ValueHead
from lit_rlhf.models.layers.lora_linear import quant_state_of
from lit_rlhf.models.loading import keep_four_bits_as_they_are
from lit_rlhf.models.vision import is_seeing, parts_beside_decoder
from lit_rlhf.rewards.forest_scorer import ForestScorer
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.iterations import Iterations

_FORWARD = ("_states", "_fit")
"""Methods of a backbone that compute with its root unit."""


def shard_models(module: LightningModule, mesh: DeviceMesh) -> None:
    """Shard every model of a module over the ranks of a mesh; what is sharded already stays as it is.

    All ranks begin with the weights of the first one.

    Args:
        module: whose models are built.
        mesh: one-dimensional.

    Raises:
        ValueError: if a model cannot be sharded.
    """
    for model in _models(module):
        if not isinstance(model, FSDPModule):
            shard_model(model, mesh)


def shard_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a backbone, a head or a Hugging Face model, unit by unit.

    Args:
        model: not sharded yet; it comes to lie on the mesh's device.
        mesh: one-dimensional.

    Raises:
        ValueError: if a model has no decoder layers that transformers knows.
    """
    # Layers give a view of what they computed, and nothing here changes that in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    keep_four_bits_as_they_are(model)
    for unit in [*_inner_units(model), model]:
        _shard_unit(unit, mesh)
    if isinstance(model, Backbone):
        model.layout = None  # found out again with sharded weights, which makes the backbone the root of its units
        for name in _FORWARD:
            register_fsdp_forward_method(model, name)


def unit_names(module: nn.Module) -> dict[str, list[str]]:
    """The units of a sharded module: name -> names of the parameters that it gathers, in the order of the module."""
    names = [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]
    units: dict[str, list[str]] = {name: [] for name in names}
    for path, _ in module.named_parameters():
        owner = max((name for name in names if not name or path.startswith(f"{name}.")), key=len, default=None)
        if owner is not None:
            units[owner].append(path)
    return units


def local_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights that this rank holds."""
    return sum(_local(parameter).nbytes for parameter in module.parameters())


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _models(module: LightningModule) -> Iterator[nn.Module]:
    """The backbones and trained heads of a module, and the reward models beside them."""
    parts = list(module.modules())
    for part in parts:
        is_head = isinstance(part, ScoreHead | ValueHead) and any(p.requires_grad for p in part.parameters())
        if isinstance(part, Backbone) or is_head:
            yield part
    for part in parts:
        if isinstance(part, Iterations):
            yield from _reward_models(part)


def _reward_models(iterations: Iterations) -> Iterator[nn.Module]:
    for weighted in iterations.collector.rewards:
        if isinstance(weighted.reward, ModelReward):
            scorer = weighted.reward.scorer
            yield scorer.model.backbone if isinstance(scorer, ForestScorer) else scorer.module


def _inner_units(model: nn.Module) -> Iterator[nn.Module]:
    """Decoder layers, and a reference model."""
    if isinstance(model, ScoreHead | ValueHead):
        return
    bases = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    kinds = {kind for base in bases for kind in base._no_split_modules or ()}
    beside = [part for base in bases if is_seeing(base.config) for part in parts_beside_decoder(base).values()]
    towers = {layer for part in beside for layer in part.modules()}
    layers = [part for part in model.modules() if type(part).__name__ in kinds and part not in towers]
    if not layers:
        names = ", ".join(sorted({base.config.model_type for base in bases}))
        raise ValueError(f"a {names} model names no decoder layers (_no_split_modules), so it cannot be sharded")
    yield from layers
    if isinstance(model, Backbone) and model.reference_model is not None:
        yield model.reference_model


def _shard_unit(unit: nn.Module, mesh: DeviceMesh) -> None:
    device = torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" else "cpu"
    for part in unit.modules():
        if isinstance(part, bitsandbytes.nn.Linear4bit) and not isinstance(part.weight, DTensor):
            part.quant_state = quant_state_of(part)  # the weight is a plain tensor from here on
    own = [parameter for parameter in unit.parameters() if not isinstance(parameter, DTensor)]
    _begin_alike(own, mesh, device)
    with _whole_numbers_without_gradient():
        fully_shard(unit, mesh=mesh)


@contextmanager
def _whole_numbers_without_gradient() -> Iterator[None]:
    """Let shards of 4-bit codes be parameters: torch 2.11 asks for the gradient of each before it asks whether to."""
    make = nn.Parameter.__new__

    def make_either(cls: type[nn.Parameter], data: torch.Tensor, requires_grad: bool = True) -> nn.Parameter:
        return make(cls, data, requires_grad and data.is_floating_point())

    nn.Parameter.__new__ = make_either  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Parameter.__new__ = make  # type: ignore[method-assign]


@torch.no_grad()
def _begin_alike(parameters: Iterable[nn.Parameter], mesh: DeviceMesh, device: torch.device | str) -> None:
    """Give parameters the values of the first rank, which may have drawn others."""
    if mesh.size() == 1:
        return
    for parameter in parameters:
        values = parameter.data.to(device)
        dist.broadcast(values, 0)
        parameter.data.copy_(values)
