"""Which layout a model is computed in. Whether it can take a forest is found out by trying, on a few tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from transformers import PretrainedConfig, PreTrainedModel

from lit_rlhf.types import Forest, Segment

Layout = Literal["forest", "padded"]


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
