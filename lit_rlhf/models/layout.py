"""Which layout a model is computed in. Whether it can take a forest is found out by trying, on a few tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_rlhf.models.layers.attention import FOREST_ATTENTION, ForestLayout
from lit_rlhf.models.layers.linear_logprobs import LogitTransform
from lit_rlhf.models.layers.lm_head import head_parameters, logit_transform
from lit_rlhf.models.loading import OWN_ATTENTION
from lit_rlhf.models.padded import unfold
from lit_rlhf.types import Forest, Segment

if TYPE_CHECKING:
    from lit_rlhf.models.backbone import Backbone

Layout = Literal["forest", "padded"]


def choose_layout(backbone: Backbone) -> tuple[Layout, LogitTransform | None]:
    """Find out by a probe how a model is computed, and what it does to its logits (None where it has no head).

    Args:
        backbone: in evaluation mode; its attention is set to what is chosen.

    Raises:
        ValueError: if a forest is asked of a model that cannot take one, or its logits cannot be reproduced.
    """
    probe = probe_forest(backbone.num_embeddings).to(backbone.base.device)
    expected = backbone.padded_states(probe)
    transform = _find_transform(backbone, probe, expected) if backbone.has_lm_head else None
    if backbone.attention not in OWN_ATTENTION:
        return "padded", transform
    models, before = _models(backbone), backbone.base.config._attn_implementation
    set_attention(models, FOREST_ATTENTION)
    reason = _refusal(backbone, probe, expected)
    if reason is None:
        return "forest", transform
    set_attention(models, before)
    if backbone.attention == "forest":
        raise ValueError(f"backbone.attention is 'forest', but {reason}")
    rank_zero_info(f"backbone: computing on padded rows, because {reason}")
    return "padded", transform


def _find_transform(backbone: Backbone, probe: Forest, states: Tensor) -> LogitTransform:
    rows = unfold(probe)
    weight, bias = head_parameters(backbone.base)
    logits = backbone.base(input_ids=rows.tokens, attention_mask=rows.mask, position_ids=rows.positions).logits
    raw = nn.functional.linear(states, weight, bias)
    return logit_transform(backbone.base.config, raw, logits.flatten(0, 1)[rows.cells])


def _models(backbone: Backbone) -> list[PreTrainedModel]:
    both = [model for model in (backbone.model, backbone.reference_model) if model is not None]
    return [cast(PreTrainedModel, m.get_base_model()) if isinstance(m, PeftModel) else m for m in both]


def _refusal(backbone: Backbone, probe: Forest, expected: Tensor) -> str | None:
    """Why a model cannot take a forest; None if it can."""
    kind = backbone.base.config.model_type
    if backbone.base.config._attn_implementation != FOREST_ATTENTION:
        return f"a {kind} model does not take its attention from the registry of transformers"
    layout = ForestLayout(probe)
    try:
        states = backbone.forest_states(probe, layout)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return f"a {kind} model raised: {error}"
    if limit := unseen_limit(backbone.base.config, layout.windows):
        return f"a {kind} model limits attention to {limit} tokens by a mask of its own"
    tolerance = 1e-4 if expected.dtype == torch.float32 and not backbone.is_quantized else 5e-2
    difference = float((states - expected).float().norm() / expected.float().norm())
    if not difference <= tolerance:
        return f"a {kind} model gives other hidden states on a forest than on rows (relative {difference:.2g})"
    return None


def probe_forest(num_embeddings: int) -> Forest:
    """A pair and a plain sequence, 24 tokens in all.

    Args:
        num_embeddings: token ids lie below it.
    """
    ids = [3 + (7 * number) % max(1, num_embeddings - 4) for number in range(24)]
    prompt, first, second, other = ids[:5], ids[5:11], ids[11:18], ids[18:]
    pair = [
        Segment(prompt, [False] * len(prompt)),
        Segment(first, [True] * len(first), 0),
        Segment(second, [True] * len(second), 0),
    ]
    return Forest.pack([pair, [Segment(other, [False] + [True] * (len(other) - 1))]])


def set_attention(models: Iterable[PreTrainedModel], name: str) -> None:
    """Change the attention of those models that take it from the registry of transformers."""
    for model in models:
        if model._can_set_attn_implementation():
            model.set_attn_implementation(name)


def unseen_limit(config: PretrainedConfig, windows: set[int | None]) -> int | None:
    """The reach of a model's attention, in tokens, where it is hidden in a mask; None where nothing is hidden.

    A probe is shorter than any window of practice, so it cannot tell.

    Args:
        config: of the model.
        windows: the windows that its layers asked for.
    """
    values = config.get_text_config().to_dict()
    limits = (values.get(name) for name in ("sliding_window", "attention_chunk_size"))
    return next((limit for limit in limits if limit and limit not in windows), None)
