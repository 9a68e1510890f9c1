"""Models of four sizes with random weights, and a tokenizer made from the rows at hand."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENIZER_SIZE = 4800

# hidden, layers, heads, MLP, vocabulary. The head of "proxy" has the share of the work that it has in "reference".
ARCHITECTURES = {
    "tiny": (64, 2, 4, 128, TOKENIZER_SIZE),
    "small": (256, 4, 4, 688, TOKENIZER_SIZE),
    "proxy": (512, 8, 8, 1376, TOKENIZER_SIZE),
    "reference": (4096, 32, 32, 11008, 151_936),
}


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that adds <s> before a text, as Llama's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def make_model(arch: str, dtype: str, device: str, folder: Path) -> None:
    """A Llama with random weights."""
    hidden, layers, heads, mlp, vocabulary = ARCHITECTURES[arch]
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype=dtype,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)


def body_flops(arch: str, passes: int, tokens: dict[str, int]) -> float:
    """Multiply-adds times two of the decoder layers: each token once, weight gradients of adapters left out."""
    hidden, layers, _, mlp, _ = ARCHITECTURES[arch]
    return 2.0 * passes * tokens["unique"] * layers * (4 * hidden * hidden + 3 * hidden * mlp)
