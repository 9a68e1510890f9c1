"""Making a backbone: from a config, or around a model that somebody else made."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from peft import PeftModel
from transformers import PreTrainedModel

from lit_rlhf.models import adapters
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.layers.attention import FOREST_ATTENTION
from lit_rlhf.models.layout import set_attention
from lit_rlhf.models.loading import keep_four_bits_as_they_are, load_causal_lm, switch_dropout_off
from lit_rlhf.models.moe.routers import freeze_routers, require_routers
from lit_rlhf.models.options import BackboneConfig

ReferenceKind = Literal["none", "fixed", "moving"]


def build_backbone(
    config: BackboneConfig,
    *,
    reference: ReferenceKind = "fixed",
    device: torch.device | None = None,
    role: Literal["policy", "reward", "critic"] = "policy",
) -> Backbone:
    """Load the base model and put the roles on it.

    Args:
        config: what to load.
        reference: "none" where no reference is needed; "moving" where it must have weights of its own.
        device: where quantised weights are made; None = CPU.
        role: of what is trained; a reward model and a critic have no ``lm_head``.

    Raises:
        ValueError: for what :func:`lit_rlhf.models.loading.load_causal_lm` and the adapters refuse.
    """
    model = load_causal_lm(config, device, with_lm_head=role == "policy")
    if not config.lora.enabled:
        second = load_causal_lm(config, device).eval() if reference != "none" else None
        model.requires_grad_(True)
        if not config.train_router:
            freeze_routers(model)
        return _balanced(Backbone(model, second, config.attention), config.router_aux_loss_coef)
    if config.adapter is None:
        policy = adapters.new_adapter(model, config.lora, role, train_router=config.train_router)
    else:
        policy = adapters.load_adapter(model, config.adapter, config.lora.dropout, role)
    if config.adapter is None and config.lora.init in adapters.MUTATING:
        adapters.copy_adapter(policy, role, adapters.BEGINNING)
    if reference == "moving" or (reference == "fixed" and config.adapter is not None):
        adapters.copy_adapter(policy, role, adapters.REFERENCE)
    return _balanced(Backbone(policy, None, config.attention), config.router_aux_loss_coef)


def _balanced(backbone: Backbone, coef: float) -> Backbone:
    """Let the load-balancing loss of a mixture of experts count as much."""
    if coef:
        require_routers(backbone.base, "backbone.router_aux_loss_coef")
    backbone.router_aux_loss_coef = coef
    return backbone


def open_backbone(
    backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel,
    *,
    reference: ReferenceKind = "fixed",
    device: torch.device | None = None,
) -> Backbone:
    """The backbone that a config describes, that a model of your own becomes, or that is one already.

    Args:
        backbone: one of these.
        reference: as for :func:`build_backbone`.
        device: where quantised weights are made; None = CPU.

    Raises:
        ValueError: for what :func:`build_backbone` refuses.
    """
    if isinstance(backbone, BackboneConfig):
        return build_backbone(backbone, reference=reference, device=device)
    return backbone if isinstance(backbone, Backbone) else wrap_model(backbone, reference=reference)


def build_policy(
    backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel,
    reference_model: BackboneConfig | None = None,
    *,
    device: torch.device | None = None,
) -> Backbone:
    """A policy that is trained on what it says, with its reference; nothing in it drops out.

    Args:
        backbone: what to load, or a model that you made yourself.
        reference_model: the reference, where it is a model of its own rather than the policy as it begins.
        device: where quantised weights are made; None = CPU.

    Raises:
        ValueError: for what :func:`build_backbone` refuses.
    """
    kind: ReferenceKind = "fixed" if reference_model is None else "none"
    policy = open_backbone(backbone, reference=kind, device=device)
    if reference_model is not None:
        model = load_causal_lm(reference_model, device)
        if reference_model.adapter is not None:
            model = adapters.load_adapter(model, reference_model.adapter, 0.0).merge_and_unload()
        policy.reference_model = model.eval().requires_grad_(False)
        if policy.layout == "forest":  # chosen before there was this model
            set_attention([model], FOREST_ATTENTION)
    if switch_dropout_off(policy):
        rank_zero_warn("the policy had dropout, which is off now: what it says at two moments is compared")
    return policy


def wrap_model(model: PreTrainedModel | PeftModel, *, reference: ReferenceKind = "fixed") -> Backbone:
    """Put roles on a model that you made yourself. It is used as it is: its dropout, too, is yours.

    Args:
        model: a Hugging Face causal language model, which is then trained whole beside a frozen copy, or a PEFT model,
            whose active adapter is trained; what it computes at this moment is the reference.
        reference: as for :func:`build_backbone`.
    """
    keep_four_bits_as_they_are(model)
    if not isinstance(model, PeftModel):
        second = None
        if reference != "none":
            second = deepcopy(model).eval()
            second.requires_grad_(False)
        return Backbone(model, second)
    adapters.refuse_learned_prompt(model)
    begun = not adapters.is_fresh(model, model.active_adapter)
    if reference == "moving" or (reference == "fixed" and begun):
        adapters.copy_adapter(model, model.active_adapter, adapters.REFERENCE)
    return Backbone(model)
