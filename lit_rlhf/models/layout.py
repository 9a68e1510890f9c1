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
from lit_rlhf.models.vision import is_seeing
from lit_rlhf.types import Forest, Picture, Segment

if TYPE_CHECKING:
    from lit_rlhf.models.backbone import Backbone

Layout = Literal["forest", "padded"]


def choose_layout(backbone: Backbone) -> tuple[Layout, LogitTransform | None]:
    """Find out by a probe how a model is computed, and what it does to its logits (None where it has no head).

    Text with pictures is probed apart, as a model may take it in another layout than text alone.

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
    models, before = _models(backbone), attention_of(backbone.base)
    set_attention(models, FOREST_ATTENTION)
    reason = _refusal(backbone, probe, expected)
    if reason is None:
        _try_pictures(backbone)
        return "forest", transform
    set_attention(models, before)
    if backbone.attention == "forest":
        raise ValueError(f"backbone.attention is 'forest', but {reason}")
    rank_zero_info(f"backbone: computing on padded rows, because {reason}")
    return "padded", transform


def _try_pictures(backbone: Backbone) -> None:
    """Find out whether a forest with pictures is exact for the models of a backbone."""
    if backbone.vision is None or backbone.vision.refusal:
        return
    reason = _picture_refusal(backbone)
    if reason is not None and backbone.attention == "forest":
        raise ValueError(f"backbone.attention is 'forest', but with pictures {reason}")
    if reason is not None:
        rank_zero_info(f"backbone: computing text with pictures on padded rows, because {reason}")
    backbone.eyes.forget()
    backbone.picture_layout = "forest" if reason is None else "padded"


def _picture_refusal(backbone: Backbone) -> str | None:
    """Why a model cannot take a forest with pictures; None if it can."""
    try:
        picture = backbone.eyes.sample_picture()
        probe = probe_forest(backbone.num_embeddings, picture, backbone.undrawn_tokens[0]).to(backbone.base.device)
        expected = backbone.padded_states(probe)
    except (KeyError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return f"no picture could be made to try a {backbone.base.config.model_type} model with: {error}"
    return _refusal(backbone, probe, expected)


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
    if attention_of(backbone.base) != FOREST_ATTENTION:
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


def probe_forest(num_embeddings: int, picture: Picture | None = None, image_token: int = -1) -> Forest:
    """A pair and a plain sequence, 24 tokens in all, and those of a picture in the prompt of the pair.

    Args:
        num_embeddings: token ids lie below it.
        picture: None = none.
        image_token: what the picture takes the place of; no other token is one.
    """
    ids = [3 + (7 * number) % max(1, num_embeddings - 4) for number in range(24)]
    ids = [token - 1 if token == image_token else token for token in ids]
    prompt, first, second, other = ids[:5], ids[5:11], ids[11:18], ids[18:]
    if picture is not None:
        prompt = [*prompt[:2], *[image_token] * picture.num_tokens, *prompt[2:]]
    pair = [
        Segment(prompt, [False] * len(prompt), pictures=(picture,) if picture is not None else ()),
        Segment(first, [True] * len(first), 0),
        Segment(second, [True] * len(second), 0),
    ]
    return Forest.pack([pair, [Segment(other, [False] + [True] * (len(other) - 1))]])


def attention_of(model: PreTrainedModel) -> str:
    """Name of the attention that a model's decoder computes with."""
    return str(model.config.get_text_config()._attn_implementation)


def set_attention(models: Iterable[PreTrainedModel], name: str) -> None:
    """Change the attention of the decoders of those models that take it from the registry of transformers."""
    for model in models:
        if model._can_set_attn_implementation():
            # The tower of a model that reads pictures keeps its own.
            model.set_attn_implementation({"text_config": name} if is_seeing(model.config) else name)


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
