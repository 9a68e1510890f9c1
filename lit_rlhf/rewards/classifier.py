"""Any Hugging Face sequence classifier as a scorer: encoders such as BERT, and decoders with several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lit_rlhf.models.loading import (
    heads_are_no_news,
    keep_four_bits_as_they_are,
    local_or_hub,
    quantization_config,
)
from lit_rlhf.models.micro_batches import in_step
from lit_rlhf.rewards.texts import Encoding


class Classifier:
    """Scores texts by one output of a sequence classifier, in padded batches.

    Args:
        name: folder or hub name.
        label: name or number of the output that is the score; None where there is one alone.
        dtype: "auto" is what the checkpoint was saved in.
        quantization: "none", "nf4" or "int8".
        device: where quantised weights are made; None = CPU.

    Raises:
        ValueError: if there is no such classifier, its checkpoint lacks weights, or it has no such label.
    """

    def __init__(
        self,
        name: str,
        label: str | int | None = None,
        dtype: str = "auto",
        quantization: str = "none",
        device: torch.device | None = None,
    ) -> None:
        try:
            config = AutoConfig.from_pretrained(local_or_hub(name), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"reward model '{name}' cannot be loaded: {_first(error)}") from error
        kinds = config.architectures or []
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            raise ValueError(
                f"'{name}' is no reward model: it is a {', '.join(kinds) or config.model_type} without a head"
            )
        self.output = _output(name, config, label)
        self.module = _load(name, config, dtype, quantization, device)

    @property
    def max_length(self) -> int | None:
        """Most tokens of a text; None where the model does not say."""
        limit = self.module.config.to_dict().get("max_position_embeddings")
        for part in self.module.modules():
            if isinstance(part, nn.Embedding) and part.num_embeddings == limit and part.padding_idx is not None:
                return int(limit) - part.padding_idx - 1  # RoBERTa and its kin count positions from the padding on
        return limit

    def __call__(self, rows: Sequence[Encoding], pad: int | None, token_budget: int) -> list[float]:
        """Score texts.

        Args:
            rows: texts in tokens.
            pad: the tokenizer's pad token, if it has one.
            token_budget: tokens of one forward pass, padding included; a longer text gets one to itself.

        Returns:
            The logit of the chosen output for each text, in their order.
        """
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]), reverse=True)
        scores, batches = [0.0] * len(rows), []
        while order:
            at_once = max(1, token_budget // len(rows[order[0]]["input_ids"]))
            batches.append(order[:at_once])
            order = order[at_once:]
        for batch in in_step(self.module, batches, lambda forest: self.module(input_ids=forest.tokens[None])):
            for row, score in zip(batch, self._logits([rows[row] for row in batch], pad).tolist(), strict=True):
                scores[row] = score
        return scores

    def _logits(self, rows: Sequence[Encoding], pad: int | None) -> Tensor:
        """(L,) float32 logits of the chosen output."""
        # Decoders find the last token by looking for padding, so the token that pads must not be one of a text.
        used = {token for row in rows for token in row["input_ids"]}
        free = (token for token in range(len(used) + 1) if token not in used)
        padding = next(free) if pad is None or pad in used else pad
        self.module.config.pad_token_id = padding
        fills = {"input_ids": padding}
        columns = {name: _padded([row[name] for row in rows], fills.get(name, 0)) for name in rows[0]}
        columns["attention_mask"] = _padded([[1] * len(row["input_ids"]) for row in rows], 0)
        device = next(self.module.parameters()).device
        logits = self.module(**{name: column.to(device) for name, column in columns.items()}).logits
        return logits[:, self.output].float()


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """(L, M) int64, each row filled up at its end."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _output(name: str, config: PretrainedConfig, label: str | int | None) -> int:
    """Number of the output that is the score."""
    labels = [str(known) for _, known in sorted((config.id2label or {}).items())]
    if label is None and len(labels) == 1:
        return 0
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    if label in labels:
        return labels.index(str(label))
    raise ValueError(
        f"label is {label!r}, and the classifier '{name}' has {', '.join(labels)}; name the one that is the score"
    )


def _load(
    name: str, config: PretrainedConfig, dtype: str, quantization: str, device: torch.device | None
) -> PreTrainedModel:
    """The classifier, frozen and in evaluation mode."""
    saved = str(config.dtype or "float32").removeprefix("torch.")
    kind: torch.dtype = getattr(torch, saved if dtype == "auto" else dtype)
    try:
        with heads_are_no_news():
            model, loading = cast(Any, AutoModelForSequenceClassification).from_pretrained(
                local_or_hub(name),
                config=config,
                dtype=kind,
                quantization_config=quantization_config(quantization, kind),
                device_map=None if quantization == "none" else {"": device or torch.device("cpu")},
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ValueError(f"reward model '{name}' cannot be loaded: {_first(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"'{name}' is no reward model: its checkpoint lacks {', '.join(missing[:4])}")
    keep_four_bits_as_they_are(model)
    model.requires_grad_(False)
    return model.eval()


def _first(error: Exception) -> str:
    """First line of a message that may be a page long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
