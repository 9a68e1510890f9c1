"""The value head: hidden states to one number per token, as in TRL.

Shape letters: H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lit_rlhf.models.heads.float32 import without_cast

INITIALISATIONS: dict[str | None, Callable[[nn.Linear, float], object]] = {
    None: lambda summary, _: summary,
    "normal": lambda summary, spread: (nn.init.normal_(summary.weight, std=spread), nn.init.zeros_(summary.bias)),
}
"""How a fresh head starts, by name; None leaves it as torch makes linear layers."""


class ValueHead(nn.Module):
    """Dropout and a linear layer in float32, whatever the model computes in and also under autocast.

    Args:
        config: of the model whose hidden states it reads.
        summary_dropout_prob: probability of dropping an input while training; 0 = no dropout.
        v_head_init_strategy: None, or "normal": weights from a normal distribution, bias 0.
        v_head_initializer_range: standard deviation of that distribution.

    Attributes:
        dropout: before the linear layer.
        summary: the linear layer, H -> 1.
        flatten: computes nothing; it is there because it always was.

    Raises:
        ValueError: if the config names no hidden size, or there is no such strategy.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        summary_dropout_prob: float = 0.1,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
    ) -> None:
        super().__init__()
        if v_head_init_strategy not in INITIALISATIONS:
            accepted = ", ".join(map(repr, INITIALISATIONS))
            raise ValueError(f"v_head_init_strategy is '{v_head_init_strategy}'; there are {accepted}")
        self.dropout = nn.Dropout(summary_dropout_prob) if summary_dropout_prob else nn.Identity()
        self.summary = nn.Linear(hidden_size(config), 1, dtype=torch.float32)
        self.flatten = nn.Flatten()
        INITIALISATIONS[v_head_init_strategy](self.summary, v_head_initializer_range)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Values (..., 1) in float32 of hidden states (..., H)."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.summary(self.dropout(hidden_states.float()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move between devices, but stay in float32."""
        return super()._apply(without_cast(fn), recurse)


def hidden_size(config: PretrainedConfig) -> int:
    """Numbers in a last hidden state (H), as the head of the model reads it.

    Some OPT models project it to ``word_embed_proj_dim``; a model of several kinds of input has it in the config of
    its text part.

    Raises:
        ValueError: if the config does not say.
    """
    text = config.get_text_config(decoder=True)
    values = text.to_dict()
    names = ("word_embed_proj_dim", text.attribute_map.get("hidden_size", "hidden_size"))
    size = next((values[name] for name in names if values.get(name)), None)
    if size is None:
        raise ValueError(f"the config of a '{config.model_type}' model names no hidden_size: no value head fits it")
    return int(size)
