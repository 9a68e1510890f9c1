"""Where a callback gets its tokenizer from, and which tokens end an answer."""

from __future__ import annotations

from lightning.pytorch import Trainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.models.backbone import Backbone


def tokenizer_of(trainer: Trainer, given: PreTrainedTokenizerBase | str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that a callback was given, or that of the data.

    Args:
        trainer: the running Trainer.
        given: a tokenizer, the folder or hub name of one, or None for ``trainer.datamodule.tokenizer``.

    Raises:
        ValueError: if none is given and the data module has none.
    """
    if isinstance(given, str):
        return AutoTokenizer.from_pretrained(given, trust_remote_code=False)
    if given is not None:
        return given
    try:
        return trainer.datamodule.tokenizer  # type: ignore[attr-defined]
    except AttributeError:
        raise ValueError("the data module has no tokenizer: give this callback one, as tokenizer=...") from None


def stop_tokens(tokenizer: PreTrainedTokenizerBase, backbone: Backbone) -> list[int]:
    """Ids that end an answer: the tokenizer's end-of-sequence token, and those of the model's generation settings.

    Raises:
        ValueError: if neither has any.
    """
    settings = backbone.base.generation_config
    ends = settings.eos_token_id if settings is not None else None
    more = ends if isinstance(ends, list) else [ends]
    stops = [token for token in dict.fromkeys([tokenizer.eos_token_id, *more]) if token is not None]
    if not stops:
        raise ValueError("neither the tokenizer nor the model names an end-of-sequence token")
    return stops
