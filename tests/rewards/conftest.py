"""Tiny classifiers of other kinds than the policy, each with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = "what is the capital of france ? paris . how many legs does a spider have eight hello there no user bot"


@pytest.fixture(scope="session")
def word_tokenizer():
    """Words of lower case, joined in pairs as BERT does: [CLS] a [SEP] b [SEP], told apart by token_type_ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split()])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def tiny_classifier(tiny_tokenizer, word_tokenizer, tmp_path_factory) -> Callable[..., Path]:
    """Factory of folders of random sequence classifiers: ``tiny_classifier("bert", num_labels=1)``."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    folders: dict[tuple[str, str], Path] = {}

    def make(kind: str, **overrides: Any) -> Path:
        key = kind, str(sorted(overrides.items()))
        if key not in folders:
            tokenizer = tiny_tokenizer if kind in ("llama", "gpt2") else word_tokenizer
            sizes = {**shape, "vocab_size": len(tokenizer), "pad_token_id": 0, "max_position_embeddings": 48}
            config = AutoConfig.for_model(kind, **{**sizes, **overrides})
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = AutoModelForSequenceClassification.from_config(config)
                for parameter in model.parameters():  # far from 0, so that every token matters
                    parameter.data.add_(0.2 * torch.randn_like(parameter))
            folders[key] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folders[key])
            tokenizer.save_pretrained(folders[key])
        return folders[key]

    return make
