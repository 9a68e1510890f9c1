"""Where the tokenizer of a run comes from, and which tokens end an answer."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy

from lightning.pytorch import LightningModule, Trainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.loading import local_or_hub


def tokenizer_of(trainer: Trainer, given: PreTrainedTokenizerBase | str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was given, or that of the data.

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
        raise ValueError("the data module has no tokenizer: give one, as tokenizer=...") from None


def policy_tokenizer(
    module: LightningModule, given: PreTrainedTokenizerBase | str | None, backbone: Backbone
) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy: what was given, that of the data, or what lies beside the weights.

    Args:
        module: with a Trainer or without one.
        given: a tokenizer or its name.
        backbone: of the policy.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    if given is None:
        with suppress(RuntimeError, ValueError):  # no Trainer, or no data module with a tokenizer
            return tokenizer_of(module.trainer, None)
    name = given or str(backbone.base.name_or_path)
    try:
        return AutoTokenizer.from_pretrained(local_or_hub(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer lies beside '{name}': give one, as tokenizer=...") from error


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


def with_padding(tokenizer: PreTrainedTokenizerBase, backbone: Backbone) -> PreTrainedTokenizerBase:
    """A copy whose pad token never ends a text, which sequence classifiers of transformers rely on.

    The tokenizer's own pad token is kept unless it ends answers too; else it is the unknown token, the one that begins
    texts, any other special token, or a new one where the embedding has a row for it; else there is none.

    Args:
        tokenizer: may have no pad token.
        backbone: its generation settings name tokens that end answers.
    """
    stops = set(stop_tokens(tokenizer, backbone))
    own = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
    harmless = (token for token in own if token and tokenizer.convert_tokens_to_ids(str(token)) not in stops)
    padded = deepcopy(tokenizer)
    padded.pad_token = next(harmless, None)
    if padded.pad_token is None and len(tokenizer) < backbone.num_embeddings:
        padded.add_special_tokens({"pad_token": "<|pad|>"})
    return padded
