"""What a decoder is given whose layers look at pictures, where there is one and where there is none.

Shape letters: B rows, W their width, K rows of all pictures that are looked at together, H hidden size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_rlhf.models.layers.cached_attention import CachedRows
from lit_rlhf.models.layers.cross_attention import CachedPictures, SeenPictures, Stretch
from lit_rlhf.ranks import num_ranks


def beside(
    states: Tensor | None, looks: Tensor | SeenPictures | CachedPictures, is_seeing: Tensor, dtype: torch.dtype
) -> dict[str, Any]:
    """What the decoder is given beside tokens.

    Args:
        states: (B, K, H) of pictures; None = keys and values of them are known.
        looks: who sees what of them; a tensor is additive, (B, 1, W, K).
        is_seeing: (B, W) bool, whether what layers that look add behind their attention counts.
        dtype: that the decoder computes with.
    """
    inputs = {"cross_attention_mask": looks, "full_text_row_masked_out_mask": is_seeing.to(dtype)[:, None, :, None]}
    return inputs if states is None else {**inputs, "cross_attention_states": states.to(dtype)}


def nothing_beside(decoder: nn.Module, tokens: Tensor, *, is_forest: bool) -> dict[str, Any]:
    """What the decoder is given for layers that look to compute, and add nothing.

    Args:
        decoder: of the model.
        tokens: (B, W) int64, text without pictures.
        is_forest: whether it is a forest; else padded rows.
    """
    states = blank(decoder, len(tokens))
    looks: Tensor | SeenPictures = states.new_zeros(len(tokens), 1, 1, 1)
    if is_forest:
        looks = SeenPictures([Stretch(0, tokens.shape[1], ((0, 1),))], [()])
    return beside(states, looks, torch.zeros_like(tokens, dtype=torch.bool), states.dtype)


def blank(decoder: nn.Module, num_rows: int) -> Tensor:
    """(num_rows, 1, H) of zeros, in place of pictures; without biases their keys and values are zeros, too."""
    weight = cast(Tensor, cast(Any, decoder).embed_tokens.weight)
    return torch.zeros(num_rows, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)


def look_at_nothing(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Let layers that look compute for text without pictures too, and add nothing, where there are other ranks.

    Ranks wait for each other's layers (FSDP2) and gradients (DDP), and the text of one of them may have pictures.

    Args:
        decoder: that is called; this is a hook before its forward pass.
        args: of the call.
        kwargs: of the call.
    """
    is_step = kwargs.get("past_key_values") is not None or isinstance(kwargs.get("forest_layout"), CachedRows)
    if num_ranks() == 1 or is_step or kwargs.get("cross_attention_states") is not None:
        return None
    return args, kwargs | nothing_beside(
        decoder, kwargs["input_ids"], is_forest=kwargs.get("forest_layout") is not None
    )
