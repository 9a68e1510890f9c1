"""The tiny model and its tokenizer, made from nothing: byte-level BPE and a Llama of 0.8 million parameters.

The model first learns the facts (:func:`lit_rlhf.embedded.rows.lessons`), then to answer as people do
(:func:`lit_rlhf.embedded.rows.mixture`): right and wrong, friendly and rude. It knows the world and its language, but
not what people prefer: that is left to the algorithms.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_rlhf.embedded.rows import SEED, Conversation, lessons, mixture

VOCABULARY = 768
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
IGNORED = -100


def make_tokenizer(num_conversations: int = 4000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the mixture; every turn ends with the end token, which is also where generation stops.

    Args:
        num_conversations: how many conversations to learn the vocabulary from.
    """
    conversations = islice(mixture(random.Random(f"{SEED}/tokenizer")), num_conversations)
    texts = [message["content"] for conversation in conversations for message in conversation]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLES),
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh model for the tokenizer: grouped-query attention, tied embeddings, random weights from the seed."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    num_steps: int = 3600,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
) -> Iterator[tuple[int, float]]:
    """Teach the model the last answer of each conversation, in place; the first quarter are lessons.

    Yields:
        (step, loss in nats per answer token) after every step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, num_steps, pct_start=0.05)
    rng = random.Random(f"{SEED}/model")
    num_lessons = num_steps // 4
    first = islice(_batches(lessons(rng), tokenizer, batch_size, rng), num_lessons)
    then = islice(_batches(mixture(rng), tokenizer, batch_size, rng), num_steps - num_lessons)
    model.train()
    for step, batch in enumerate(chain(first, then), start=1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        yield step, loss.item()
    model.eval()


def make(folder: Path, report: Callable[[str], None]) -> None:
    """Make tokenizer and model and save them as a Hugging Face folder, in bfloat16, on one thread of the CPU.

    Args:
        folder: where to.
        report: is told how it goes, a line at a time.
    """
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    report(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    started = time.monotonic()
    losses: list[float] = []
    for step, loss in train(model, tokenizer):
        losses.append(loss)
        if step % 100 == 0:
            report(f"step {step}  loss {fmean(losses[-100:]):.3f}  {time.monotonic() - started:.0f} s")
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(
    conversations: Iterator[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int,
    rng: random.Random,
    num_pooled: int = 16,
) -> Iterator[dict[str, Tensor]]:
    """Endless batches of rows of like length, so that little is spent on padding."""
    while True:
        pool = [_encode(tokenizer, next(conversations)) for _ in range(num_pooled * batch_size)]
        pool.sort(key=lambda row: len(row[0]))
        starts = list(range(0, len(pool), batch_size))
        rng.shuffle(starts)
        for start in starts:
            yield _collate(pool[start : start + batch_size], tokenizer.pad_token_id)


def _encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and its labels: the last answer with its end token."""
    texts = [
        tokenizer.apply_chat_template(conversation[:-1], tokenize=False, add_generation_prompt=True),
        conversation[-1]["content"] + EOS,
    ]
    asked, answered = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return asked + answered, [IGNORED] * len(asked) + answered


def _collate(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """Rows padded on the right, (B, T) int64 each; ``attention_mask`` 1 = real token."""
    length = max(len(ids) for ids, _ in rows)
    columns = {
        "input_ids": [ids + [pad] * (length - len(ids)) for ids, _ in rows],
        "labels": [labels + [IGNORED] * (length - len(labels)) for _, labels in rows],
        "attention_mask": [[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows],
    }
    return {name: torch.tensor(column) for name, column in columns.items()}
