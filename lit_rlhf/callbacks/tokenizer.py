"""Where a callback gets its tokenizer from."""

from __future__ import annotations

from lightning.pytorch import Trainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase


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
