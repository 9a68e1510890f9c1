"""Prompts: from a file, to tokens, and from tokens to what a person reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, Any]]
"""A text, or the messages of a conversation."""


def encode(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, is_raw: bool = False) -> list[int]:
    """Token ids of a prompt, through the chat template where it is a conversation.

    Raises:
        ValueError: if messages are given and the tokenizer has no chat template.
    """
    if isinstance(prompt, str) and (is_raw or tokenizer.chat_template is None):
        return tokenizer(prompt)["input_ids"]
    if tokenizer.chat_template is None:
        raise ValueError("the prompt is a list of messages, and the tokenizer of the run has no chat template")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def read_prompts(file: Path) -> list[Prompt]:
    """Prompts of a file of JSON lines.

    Raises:
        ValueError: if a line is no JSON object with a "prompt", or there are none.
    """
    prompts: list[Prompt] = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: broken JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str | list):
            raise ValueError(f'{file}:{number}: needs an object with a "prompt" that is a text or a list of messages')
        prompts.append(row["prompt"])
    if not prompts:
        raise ValueError(f"{file} holds no prompts")
    return prompts


def readable(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a prompt without special tokens, which leave the end of a line where they stood between texts."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    runs = groupby(tokens, key=special.__contains__)
    texts = [str(tokenizer.decode(list(run))).strip() for is_special, run in runs if not is_special]
    return "\n".join(filter(None, texts))
