"""Which models look at pictures, and which of their parts do."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

REFUSED = {"paligemma": "it does not read the text before a response from left to right"}
"""Kinds of model that are not taken, and why."""


def is_seeing(config: PretrainedConfig) -> bool:
    """Whether a model of this config has a tower for pictures."""
    return "vision_config" in config.sub_configs


def parts_beside_decoder(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name -> part: the largest parts that hold nothing of the decoder, such as the tower; ``lm_head`` is none."""
    decoder = set(model.get_decoder().modules())
    head = model.get_output_embeddings()

    def visit(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if child in decoder or child is head:
                continue
            if decoder.isdisjoint(child.modules()):
                yield f"{path}{name}", child
            else:
                yield from visit(child, f"{path}{name}.")

    return dict(visit(model, ""))
