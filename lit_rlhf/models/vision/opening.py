"""The eyes that fit a model: pictures among its embeddings, or attended to by layers of their own."""

from __future__ import annotations

from transformers import PreTrainedModel

from lit_rlhf.models.vision.cross_inputs import look_at_nothing
from lit_rlhf.models.vision.crossing import CrossVision
from lit_rlhf.models.vision.embedding import EmbeddedVision
from lit_rlhf.models.vision.eyes import Vision

_CROSSING = ("mllama",)
"""Kinds of model whose text attends to pictures by layers of their own."""


def open_eyes(model: PreTrainedModel) -> Vision:
    """The eyes of a model that reads pictures among text, adapters inside."""
    return (CrossVision if model.config.model_type in _CROSSING else EmbeddedVision)(model)


def keep_in_step(model: PreTrainedModel) -> None:
    """Let the layers of a model that is loaded compute on every rank, whatever pictures the text of each has."""
    if model.config.model_type in _CROSSING:
        model.get_decoder().register_forward_pre_hook(look_at_nothing, with_kwargs=True)
